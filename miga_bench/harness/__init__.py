"""What turns a method and a backbone into files: videos, contact sheets, tables, measurements."""
