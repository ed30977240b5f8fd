# Goatherd server: reads the identity, and can change nothing.
MEMBER=serviceAccount:goatherd-server@{{domain}}
{{note}}gcloud secrets add-iam-policy-binding "{{secret}}" --project={{project}}{{location}} \
    --member="$MEMBER" --role=roles/secretmanager.secretAccessor --condition=None
