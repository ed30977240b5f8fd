# Goatherd signer: signs with this key, and reads its public half; cannot change, export or delete it.
path "{{mount}}/sign/{{key}}" {
  capabilities = ["update"]
}

path "{{mount}}/keys/{{key}}" {
  capabilities = ["read"]
}
