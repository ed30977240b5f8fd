"""For authors of plugins: checks that a secret provider or a signer keeps the contract that Goatherd relies on.

- `contract`: runs the checks, from pytest classes to derive from (`ProviderContract`, `AnswerContract`) or a program.
- `contract_command`: the command ``goatherd-contract URI``.
- `provider_checks`, `answer_checks`: the checks, one function each. `subject`: the argument of a check.
- `wrong_answers`: makes a fake store report success for requests that it did not carry out, for `answer_checks`.
"""
