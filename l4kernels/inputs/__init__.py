"""What comes from outside, read and checked: files, fields of JSON, arguments, extras."""
