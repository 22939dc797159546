//! The persistent state (redb).
