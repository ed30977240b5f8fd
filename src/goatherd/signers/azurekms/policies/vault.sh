# Goatherd signer: signs with this key, and reads its public half; cannot change or delete it.
# PRINCIPAL is the object id of the managed identity, service principal or user.
VAULT="$(az keyvault show --name {{vault}} --query id --output tsv)"
GROUP="${VAULT%/providers/*}"
az role definition create --role-definition '{
  "Name": "Goatherd signer of {{vault}}",
  "Description": "Goatherd: signs with a key, and reads its public half.",
  "Actions": [],
  "DataActions": [
    "Microsoft.KeyVault/vaults/keys/read",
    "Microsoft.KeyVault/vaults/keys/sign/action"
  ],
  "AssignableScopes": [
    "'"$GROUP"'"
  ]
}'
az role assignment create --assignee "$PRINCIPAL" --role 'Goatherd signer of {{vault}}' --scope "$VAULT/keys/{{key}}"
