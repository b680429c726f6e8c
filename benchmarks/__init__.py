"""Speed, measured beside something else in the same run; never part of the tests."""
