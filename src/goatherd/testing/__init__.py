"""For authors of plugins and for our own tests. Nothing outside this package imports it.

- `contract`: what every secret provider must do, as checks to run over your own: ``goatherd-contract URI``
  (`contract_command`), or pytest classes that derive from `contract.ProviderContract` and `contract.AnswerContract`.
- `provider_checks`, `answer_checks`: these checks, one function each; `wrong_answers` makes a store lie for the second.
- `vectors`: checks a directory of vector files that GoatDB produced: ``python -m goatherd.testing.vectors DIR``.
- `herd`: simulated GoatDB nodes, for rotations without a network.
- `upstream_child`: a stand-in for an unmodified GoatDB server that is wrong where it is wrong.
- `aws_fake`: AWS Secrets Manager on the wire, after its API reference; `moto`: the emulator, found and started.
- `iam_evaluator`: whether an IAM policy allows a request.
"""
