"""For authors of plugins: the contract of a secret provider, as checks to run over your own.

- `contract`: runs the checks, as pytest classes to derive from (`ProviderContract`, `AnswerContract`) or as a program.
- `contract_command`: the command ``goatherd-contract URI``.
- `provider_checks`, `answer_checks`: the checks, one function each. `subject`: what a check is given.
- `wrong_answers`: makes a fake store report success for what did not happen, for `answer_checks`.
"""
