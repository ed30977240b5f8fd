"""For authors of plugins: checks that a secret provider or a signer keeps the contract that Goatherd relies on.

- `contract`: runs the checks of a secret provider, from a program or as pytest tests (`ProviderContract`,
  `AnswerContract`).
- `contract_command`: the command ``goatherd-contract URI``, which runs the same checks.
- `provider_checks`, `answer_checks`: the checks, one function each. `subject`: the argument of a check.
- `wrong_answers`: makes a fake store report success for requests that it did not carry out, for `answer_checks`.
- `signer_checks`: the checks of a signer, and the pytest class that runs them (`SignerContract`).
"""
