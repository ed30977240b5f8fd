"""A key of AWS KMS as a signer, over boto3. Needs the extra ``aws``.

- `signer`: the class `AWSKMSSigner`.
- `address`: parses ``awskms://REGION/KEY?option=…``, and writes the IAM policy that `goatherd policy` prints.
"""
