"""Copies of objects that the server makes, without their bytes coming here."""

from typing import Any

from boto3.s3.transfer import TransferConfig

from infra.errors import UserError
from infra.s3.client import call, tried
from infra.s3.reading import Object
from infra.s3.retries import Attempts
from infra.s3.uploading import found, headed

ONE_REQUEST = 256 << 20  # bytes; S3 allows 5 GiB, but the answer comes when all are copied


def copy(source: Object, target: Object) -> None:
    """Copy an object with its metadata, of any length; it appears only whole.

    Raises:
        Missing: there is no such object.
        UserError: it cannot be copied, or the copy has another length.
    """
    head = found(source)
    if head["ContentLength"] <= ONE_REQUEST:
        call("copy_object", target.uri, **target.place, CopySource=source.place)
    else:
        _copy_in_parts(source, target, head)
    made = headed(target)
    if made is None or made["ContentLength"] != head["ContentLength"]:
        raise UserError(
            f"{target.uri}: the server's copy of {source.uri} has another length; run the same "
            "command again"
        )


def _copy_in_parts(source: Object, target: Object, head: Any) -> None:
    metadata = {"Metadata": head["Metadata"]}  # which copies in parts do not take over
    config = TransferConfig(multipart_threshold=ONE_REQUEST, multipart_chunksize=ONE_REQUEST)

    def request(client: Any) -> None:
        client.copy(source.place, target.bucket, target.key, ExtraArgs=metadata, Config=config)

    tried(Attempts("copy_object", target.uri), request)
