# Goatherd admin: does what the rotator does, and creates and deletes the secret.
# These rights hold for every secret of the project {{project}}: give them to a person for the time of
# `goatherd init`, not to a workload. None are needed where the empty secret is made first
# (gcloud secrets create): the rotator's then go far enough.
MEMBER=serviceAccount:goatherd-admin@{{domain}}
{{note}}cat > goatherdAdmin.yaml <<'END'
title: Goatherd admin
description: The admin does what the rotator does, and creates and deletes the secret.
stage: GA
includedPermissions:
- secretmanager.secrets.create
- secretmanager.secrets.delete
- secretmanager.secrets.get
- secretmanager.secrets.update
- secretmanager.versions.access
- secretmanager.versions.add
- secretmanager.versions.destroy
- secretmanager.versions.get
- secretmanager.versions.list
END
gcloud iam roles create goatherdAdmin --project={{project}} --file=goatherdAdmin.yaml
gcloud projects add-iam-policy-binding {{project}} \
    --member="$MEMBER" --role=projects/{{project}}/roles/goatherdAdmin --condition=None
