# Goatherd admin: does what the rotator does, switches versions off (goatherd retire) and deletes the secret.
{{about}}
# PRINCIPAL is the object id of the managed identity, service principal or user.
VAULT="$(az keyvault show --name {{vault}} --query id --output tsv)"
GROUP="${VAULT%/providers/*}"
az role definition create --role-definition '{
  "Name": "Goatherd admin of {{vault}}",
  "Description": "Goatherd: does what the rotator does, switches versions off (goatherd retire) and deletes the secret.",
  "Actions": [],
  "DataActions": [
    "Microsoft.KeyVault/vaults/secrets/getSecret/action",
    "Microsoft.KeyVault/vaults/secrets/readMetadata/action",
    "Microsoft.KeyVault/vaults/secrets/setSecret/action",
    "Microsoft.KeyVault/vaults/secrets/update/action",
    "Microsoft.KeyVault/vaults/secrets/delete"
  ],
  "AssignableScopes": [
    "'"$GROUP"'"
  ]
}'
{{assignments}}
