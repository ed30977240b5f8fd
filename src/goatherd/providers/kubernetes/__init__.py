"""Kubernetes Secrets as a store, through the API server or from a mounted volume.

- `provider`: keeps all versions and labels of a secret in one Secret object.
- `client`: the HTTP requests. `access`: the API server and the credentials, with `kubeconfig` and `credentials`.
- `address`: the URI. `volume`: a read-only provider for a mounted Secret. `permissions`: the RBAC Roles as text.
"""
