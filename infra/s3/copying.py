"""Copies of objects that the server makes, without their bytes coming here."""

from typing import Any

from boto3.s3.transfer import TransferConfig

from infra.errors import UserError
from infra.folders.contract import Missing
from infra.s3.client import tried
from infra.s3.reading import Object
from infra.s3.retries import Attempts
from infra.s3.uploading import headed

PARTS = TransferConfig(multipart_threshold=256 << 20, multipart_chunksize=256 << 20)
"""A shard is copied by one request, of the 5 GiB that S3 allows: its bytes stay with the server."""


def copy(source: Object, target: Object) -> None:
    """Copy an object with its metadata, of any length; it appears only whole.

    Raises:
        Missing: there is no such object.
        UserError: it cannot be copied, or the copy has another length.
    """
    head = headed(source)
    if head is None:
        raise Missing(f"{source.uri}: there is no such object; check the name")
    # boto3 leaves metadata out of copies in parts.
    metadata = {"Metadata": head["Metadata"], "MetadataDirective": "REPLACE"}

    def request(client: Any) -> None:
        client.copy(source.place, target.bucket, target.key, ExtraArgs=metadata, Config=PARTS)

    tried(Attempts("copy_object", target.uri), request)
    made = headed(target)
    if made is None or made["ContentLength"] != head["ContentLength"]:
        raise UserError(
            f"{target.uri}: the server's copy of {source.uri} has another length; run the same "
            "command again"
        )
