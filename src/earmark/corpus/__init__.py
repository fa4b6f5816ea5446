"""Stage corpus: from a manifest to checked segments, in shards."""
