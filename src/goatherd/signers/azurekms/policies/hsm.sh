# Goatherd signer: signs with this key, and reads its public half; cannot change or delete it.
# PRINCIPAL is the object id of the managed identity, service principal or user.
az keyvault role definition create --hsm-name {{vault}} --role-definition '{
  "roleName": "Goatherd signer of {{vault}}",
  "description": "Goatherd: signs with a key, and reads its public half.",
  "actions": [],
  "notActions": [],
  "dataActions": [
    "Microsoft.KeyVault/managedHsm/keys/read/action",
    "Microsoft.KeyVault/managedHsm/keys/sign/action"
  ],
  "notDataActions": []
}'
az keyvault role assignment create --hsm-name {{vault}} --assignee "$PRINCIPAL" --role 'Goatherd signer of {{vault}}' --scope /keys/{{key}}
