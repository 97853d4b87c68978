"""What all packages share: types, protocols, artifacts and their edits."""
