# Goatherd rotator: creates and rotates the identity; switches nothing off and deletes nothing.
{{about}}
# PRINCIPAL is the object id of the managed identity, service principal or user.
VAULT="$(az keyvault show --name {{vault}} --query id --output tsv)"
GROUP="${VAULT%/providers/*}"
az role definition create --role-definition '{
  "Name": "Goatherd rotator of {{vault}}",
  "Description": "Goatherd: creates and rotates the identity; switches nothing off and deletes nothing.",
  "Actions": [],
  "DataActions": [
    "Microsoft.KeyVault/vaults/secrets/getSecret/action",
    "Microsoft.KeyVault/vaults/secrets/readMetadata/action",
    "Microsoft.KeyVault/vaults/secrets/setSecret/action"
  ],
  "AssignableScopes": [
    "'"$GROUP"'"
  ]
}'
{{assignments}}
