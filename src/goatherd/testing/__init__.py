"""For authors of plugins and for our own tests. Nothing outside this package imports it.

- `contract`: what every secret provider must do, as checks that anybody can run over their own:
  ``python -m goatherd.testing.contract URI``, or a pytest class that derives from `contract.ProviderContract`.
- `provider_checks`: these checks, one function each.
- `vectors`: checks a directory of vector files that GoatDB produced: ``python -m goatherd.testing.vectors DIR``.
- `herd`: simulated GoatDB nodes, for rotations without a network.
- `upstream_child`: a stand-in for an unmodified GoatDB server that is wrong where it is wrong.
- `aws_fake`: AWS Secrets Manager on the wire, after its API reference; `moto`: the emulator, found and started.
- `iam_evaluator`: whether an IAM policy allows a request.
"""
