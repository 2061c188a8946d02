//! Shares in memory, for unit and property tests only.
