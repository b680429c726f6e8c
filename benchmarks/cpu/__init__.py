"""Speed of the `cpu` target beside peers on the same machine, all in one interleaved run."""
