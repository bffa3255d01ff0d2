"""Train a flow that uploads in parts of 64 KiB, so that a small network has several."""

from infra import cli
from infra.s3 import uploading
from trainers.flow import main

if __name__ == "__main__":
    uploading.PART = 64 << 10
    cli.run(main)
