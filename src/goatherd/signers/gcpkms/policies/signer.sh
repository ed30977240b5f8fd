# Goatherd signer: signs with this key, and reads its public half; cannot change or destroy it.
MEMBER=serviceAccount:goatherd-signer@{{project}}.iam.gserviceaccount.com
gcloud kms keys add-iam-policy-binding {{key}} --keyring={{ring}} --location={{location}} --project={{project}} --member="$MEMBER" --role=roles/cloudkms.signer
gcloud kms keys add-iam-policy-binding {{key}} --keyring={{ring}} --location={{location}} --project={{project}} --member="$MEMBER" --role=roles/cloudkms.publicKeyViewer
