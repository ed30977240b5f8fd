# Goatherd rotator: puts the identity into a secret that is there, rotates it, and destroys what is retired.
MEMBER=serviceAccount:goatherd-rotator@{{domain}}
{{note}}cat > goatherdRotator.yaml <<'END'
title: Goatherd rotator
description: The rotator puts the identity into a secret that is there, rotates it, and destroys what is retired.
stage: GA
includedPermissions:
- secretmanager.secrets.get
- secretmanager.secrets.update
- secretmanager.versions.access
- secretmanager.versions.add
- secretmanager.versions.destroy
- secretmanager.versions.get
- secretmanager.versions.list
END
gcloud iam roles create goatherdRotator --project={{project}} --file=goatherdRotator.yaml
gcloud secrets add-iam-policy-binding "{{secret}}" --project={{project}}{{location}} \
    --member="$MEMBER" --role=projects/{{project}}/roles/goatherdRotator --condition=None
