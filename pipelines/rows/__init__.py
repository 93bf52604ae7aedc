"""Rows in files: row schema, readers, writers, Arrow types, URIs, object storage."""
