"""What the tests of calibration share."""

from tests.examples.conftest import one_thread as one_thread
