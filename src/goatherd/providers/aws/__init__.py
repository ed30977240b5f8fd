"""AWS Secrets Manager as a store, over boto3. Needs the extra ``aws``.

- `provider`: `AWSSecretProvider`, which stores Goatherd's versions and labels as AWS versions and staging labels.
- `client`: the boto3 client, its threads, the checks of its answers, and the translation of its errors.
- `address`: ``aws://REGION/SECRET?option=…``.
- `permissions`: `policy`, the exact IAM policy for a server, a rotator or an administrator.
"""
