# Goatherd server: reads the identity, and can change nothing.
{{about}}
# PRINCIPAL is the object id of the managed identity, service principal or user.
VAULT="$(az keyvault show --name {{vault}} --query id --output tsv)"
{{assignments}}
