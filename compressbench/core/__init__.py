"""The words that all parts share: types, protocols, artifacts and their edits."""
