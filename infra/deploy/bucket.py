"""A bucket in a store that has just been started."""

from collections.abc import Mapping

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.errors import UserError

OURS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
PROBE = ".written-at-start"


def make_bucket(name: str, variables: Mapping[str, str]) -> None:
    """Make the bucket, unless it is there, and write and delete an object in it.

    A store that has just been started answers before it can store.

    Args:
        name: of the bucket.
        variables: AWS_ENDPOINT_URL_S3, AWS_REGION and the two keys.

    Raises:
        UserError: the store did not take an object.
    """
    session = boto3.session.Session(
        variables["AWS_ACCESS_KEY_ID"],
        variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_REGION"],
    )
    endpoint = variables["AWS_ENDPOINT_URL_S3"]
    again = Config(retries={"mode": "standard", "total_max_attempts": 10})
    client = session.client("s3", endpoint_url=endpoint, config=again)
    try:
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in OURS:
                raise
        client.put_object(Bucket=name, Key=PROBE, Body=b"")
        client.delete_object(Bucket=name, Key=PROBE)
    except (BotoCoreError, ClientError) as error:
        raise UserError(
            f"the object store at {endpoint} takes no object in {name}: {error}"
        ) from error
