//! Words of the commands that heal a problem, as an administrator pastes them into a shell. growd runs none of them.

use std::fmt;
use std::path::Path;

/// A path as a shell takes it.
#[derive(Clone, Copy)]
pub(super) struct Quoted<'a>(pub &'a Path);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,".contains(c);
        if text.chars().all(is_plain) { f.write_str(&text) } else { write!(f, "'{}'", text.replace('\'', r"'\''")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_split() {
        for (path, text) in [("/srv/a-b_1.d", "/srv/a-b_1.d"), ("/srv/a b", "'/srv/a b'"), ("/a'b", r"'/a'\''b'")] {
            assert_eq!(Quoted(Path::new(path)).to_string(), text);
        }
    }
}
