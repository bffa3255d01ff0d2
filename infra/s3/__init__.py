"""Folders in buckets of S3, or of any store that speaks its protocol, by boto3."""
