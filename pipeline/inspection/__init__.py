"""Show what a snapshot holds: verification, SQL, report, pictures, export and gallery.

Snapshot → chosen clips and figures → text, files or a page. Nothing here changes a snapshot.
"""
