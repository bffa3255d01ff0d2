"""Copies of objects that the server makes, without their bytes coming here."""

from typing import Any

from infra.errors import UserError
from infra.folders.contract import Missing
from infra.s3.client import tried
from infra.s3.reading import Object
from infra.s3.retries import Attempts
from infra.s3.uploading import headed


def copy(source: Object, target: Object) -> None:
    """Copy an object with its metadata, of any length; it appears only whole.

    Raises:
        Missing: there is no such object.
        UserError: it cannot be copied, or the copy has another length.
    """
    head = headed(source)
    if head is None:
        raise Missing(f"{source.uri}: there is no such object; check the name")
    # One request copies 5 GiB at most. boto3 divides longer ones, and then leaves metadata out.
    metadata = {"Metadata": head["Metadata"], "MetadataDirective": "REPLACE"}

    def request(client: Any) -> None:
        client.copy(source.place, target.bucket, target.key, ExtraArgs=metadata)

    tried(Attempts("copy_object", target.uri), request)
    made = headed(target)
    if made is None or made["ContentLength"] != head["ContentLength"]:
        raise UserError(
            f"{target.uri}: the server's copy of {source.uri} has another length; run the same "
            "command again"
        )
