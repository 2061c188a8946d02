//! Directories with a project quota, on XFS or ext4.
