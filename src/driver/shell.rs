//! Words of the commands that heal a problem, as an administrator pastes them into a shell. growd runs none of them.

use std::borrow::Cow;
use std::path::Path;

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,".contains(c);
    let text = if text.chars().all(is_plain) { text } else { Cow::Owned(format!("'{}'", text.replace('\'', r"'\''"))) };
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_split() {
        for (path, text) in [("/srv/a-b_1.d", "/srv/a-b_1.d"), ("/srv/a b", "'/srv/a b'"), ("/a'b", r"'/a'\''b'")] {
            assert_eq!(quoted(Path::new(path)), text);
        }
    }
}
