"""The commands of `flowkit`, a file each: `add` describes one to the parser, `run` runs it."""
