//! Where the shares of a pool are: `/srv/shares/{share_id}`.
//!
//! Pure text: never looks at a file system. One template gives exactly one place for a share, and one place belongs to
//! at most one share, so no list of shares is needed that could be wrong.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use uuid::Uuid;

use crate::model::ShareId;

const PLACEHOLDER: &str = "{share_id}";

/// An absolute path in which one component holds `{share_id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    directory: PathBuf,
    name: NameTemplate,
    /// What follows the component with the id; empty when nothing does.
    tail: PathBuf,
}

/// Why a text is not a path with one spelling. Such paths can be compared as they are written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("{text:?} is not absolute: it must start with \"/\"")]
    NotAbsolute { text: String },
    #[error("{text:?} must not contain \"..\"")]
    Parent { text: String },
    #[error("{text:?} has an empty or \".\" component: write {plain:?}")]
    NotPlain { text: String, plain: String },
    #[error("{text:?} contains a control character")]
    ControlCharacter { text: String },
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{text:?} does not say where the share's id goes: it needs {PLACEHOLDER} once")]
    NoShareId { text: String },
    #[error("{text:?} contains {PLACEHOLDER} more than once")]
    ManyShareIds { text: String },
    /// Braces are kept for placeholders, so that a misspelt one is not taken for a directory's name.
    #[error("{text:?} contains a brace outside of {PLACEHOLDER}, the only placeholder there is")]
    UnknownPlaceholder { text: String },
    #[error("{text:?} is not the name of a logical volume: {problem}")]
    Name { text: String, problem: &'static str },
}

/// Checks that a path is absolute and has no other spelling.
///
/// # Errors
/// The first rule that it breaks.
pub fn plain_path(text: &str) -> Result<PathBuf, PathError> {
    let text_of_error = || text.to_owned();
    if !text.starts_with('/') {
        return Err(PathError::NotAbsolute { text: text_of_error() });
    }
    if text.contains(char::is_control) {
        return Err(PathError::ControlCharacter { text: text_of_error() });
    }
    if text.split('/').any(|component| component == "..") {
        return Err(PathError::Parent { text: text_of_error() });
    }
    let components: Vec<&str> = text.split('/').filter(|component| !matches!(*component, "" | ".")).collect();
    let plain = format!("/{}", components.join("/"));
    if plain == text { Ok(PathBuf::from(plain)) } else { Err(PathError::NotPlain { text: text_of_error(), plain }) }
}

impl PathTemplate {
    /// The directory whose entries are the shares, or hold them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path_of(&self, share: ShareId) -> PathBuf {
        self.directory.join(self.relative_of(share))
    }

    /// The share's place below [`Self::directory`].
    pub fn relative_of(&self, share: ShareId) -> PathBuf {
        let mut relative = PathBuf::from(self.name.name_of(share));
        // Joining an empty path would add a slash.
        relative.extend(&self.tail);
        relative
    }

    /// The share that an entry of [`Self::directory`] belongs to, `None` for a stranger.
    pub fn share_of(&self, entry_name: &OsStr) -> Option<ShareId> {
        self.name.share_of(entry_name.to_str()?)
    }

    /// Whether a share of this template and one of the other could be at the same place, or one inside the other.
    pub fn meets(&self, other: &Self) -> bool {
        self.parts().zip(other.parts()).all(|(mine, theirs)| match (mine, theirs) {
            (Part::Fixed(mine), Part::Fixed(theirs)) => mine == theirs,
            (Part::Share, Part::Fixed(name)) => self.share_of(name).is_some(),
            (Part::Fixed(name), Part::Share) => other.share_of(name).is_some(),
            // Ids are of one length, so two patterns give the same names when they are the same.
            (Part::Share, Part::Share) => self.name == other.name,
        })
    }

    /// Whether a share of this template could be at the path, inside it or around it.
    pub fn meets_path(&self, path: &Path) -> bool {
        self.parts().zip(names(path)).all(|(part, name)| match part {
            Part::Fixed(fixed) => fixed == name,
            Part::Share => self.share_of(name).is_some(),
        })
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let fixed = |path| names(path).map(Part::Fixed);
        fixed(&self.directory).chain([Part::Share]).chain(fixed(&self.tail))
    }
}

enum Part<'a> {
    Fixed(&'a OsStr),
    Share,
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

impl FromStr for PathTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        plain_path(text)?;
        let (before, after) = around_share_id(text)?;
        let (directory, prefix) = before.rsplit_once('/').unwrap_or(("", before));
        let (suffix, tail) = after.split_once('/').unwrap_or((after, ""));
        Ok(Self {
            directory: Path::new("/").join(directory),
            name: NameTemplate { prefix: prefix.to_owned(), suffix: suffix.to_owned() },
            tail: PathBuf::from(tail),
        })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = self.directory.join(self.name.to_string());
        path.extend(&self.tail);
        f.pad(&path.to_string_lossy())
    }
}

/// A name that holds `{share_id}`: that of a directory, or `share-{share_id}` for logical volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate {
    prefix: String,
    suffix: String,
}

impl NameTemplate {
    pub fn name_of(&self, share: ShareId) -> String {
        format!("{}{share}{}", self.prefix, self.suffix)
    }

    /// The share that a name belongs to, `None` for a stranger.
    ///
    /// An id in upper case is a stranger: the share's name is spelt in lower case, and is another name.
    pub fn share_of(&self, name: &str) -> Option<ShareId> {
        let id = name.strip_prefix(&self.prefix)?.strip_suffix(&self.suffix)?;
        id.parse().ok().filter(|share: &ShareId| share.to_string() == id)
    }
}

impl FromStr for NameTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let (prefix, suffix) = around_share_id(text)?;
        check_lvm_name(&format!("{prefix}{}{suffix}", Uuid::nil()))
            .map_err(|problem| TemplateError::Name { text: text.to_owned(), problem })?;
        Ok(Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{PLACEHOLDER}{}", self.prefix, self.suffix))
    }
}

/// Checks a name as lvm(8) has it under "Valid names", for volume groups and logical volumes.
///
/// # Errors
/// What is wrong with it.
pub fn check_lvm_name(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    if name.is_empty() || name == "." || name == ".." {
        return Err("it must not be empty, \".\" or \"..\"");
    }
    if name.starts_with('-') {
        return Err("it must not start with \"-\"");
    }
    if !name.chars().all(allowed) {
        return Err("it may hold letters, digits and + _ . - only");
    }
    if name.len() > 127 { Err("it is longer than 127 characters") } else { Ok(()) }
}

/// What comes before the placeholder and behind it.
fn around_share_id(text: &str) -> Result<(&str, &str), TemplateError> {
    let (before, after) =
        text.split_once(PLACEHOLDER).ok_or_else(|| TemplateError::NoShareId { text: text.to_owned() })?;
    if after.contains(PLACEHOLDER) {
        return Err(TemplateError::ManyShareIds { text: text.to_owned() });
    }
    if before.contains(['{', '}']) || after.contains(['{', '}']) {
        return Err(TemplateError::UnknownPlaceholder { text: text.to_owned() });
    }
    Ok((before, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";

    fn template(text: &str) -> PathTemplate {
        text.parse().unwrap()
    }

    #[test]
    fn gives_places_and_finds_them_again() {
        let share: ShareId = ID.parse().unwrap();
        for (text, directory, relative) in [
            ("/srv/shares/{share_id}", "/srv/shares", ID.to_owned()),
            ("/srv/share-{share_id}.d", "/srv", format!("share-{ID}.d")),
            ("/srv/{share_id}/data/export", "/srv", format!("{ID}/data/export")),
            ("/{share_id}", "/", ID.to_owned()),
        ] {
            let template = template(text);
            assert_eq!(template.to_string(), text);
            assert_eq!(template.directory(), Path::new(directory));
            // As text, since paths with and without a last slash count as equal.
            assert_eq!(template.relative_of(share).to_str(), Some(relative.as_str()));
            assert_eq!(template.path_of(share), Path::new(directory).join(&relative));
            assert_eq!(template.path_of(share).to_str(), Some(text.replace(PLACEHOLDER, ID).as_str()));
            let entry = relative.split('/').next().unwrap();
            assert_eq!(template.share_of(OsStr::new(entry)), Some(share));
        }
    }

    #[test]
    fn strangers_are_no_shares() {
        let plain = template("/srv/{share_id}");
        for name in ["", "lost+found", "6d0ad3f47c5e4c0e9a3e0c2d2f7c9a11", &ID.to_uppercase(), &format!("{ID}x")] {
            assert_eq!(plain.share_of(OsStr::new(name)), None, "{name}");
        }
        let affixed = template("/srv/a-{share_id}-a");
        for name in [ID, "a-a", "a--a", &format!("a-{ID}"), &format!("{ID}-a")] {
            assert_eq!(affixed.share_of(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, problem) in [
            ("srv/{share_id}", r#""srv/{share_id}" is not absolute: it must start with "/""#),
            ("", r#""" is not absolute: it must start with "/""#),
            ("/srv/../{share_id}", r#""/srv/../{share_id}" must not contain "..""#),
            ("/srv/./{share_id}/", r#""/srv/./{share_id}/" has an empty or "." component: write "/srv/{share_id}""#),
            ("/srv//{share_id}", r#""/srv//{share_id}" has an empty or "." component: write "/srv/{share_id}""#),
            ("/srv/{share_id}\0", r#""/srv/{share_id}\0" contains a control character"#),
            ("/srv/shares", r#""/srv/shares" does not say where the share's id goes: it needs {share_id} once"#),
            ("/srv/{shareid}", r#""/srv/{shareid}" does not say where the share's id goes: it needs {share_id} once"#),
            ("/{share_id}/{share_id}", r#""/{share_id}/{share_id}" contains {share_id} more than once"#),
            (
                "/{pool}/{share_id}",
                r#""/{pool}/{share_id}" contains a brace outside of {share_id}, the only placeholder there is"#,
            ),
        ] {
            assert_eq!(text.parse::<PathTemplate>().unwrap_err().to_string(), problem);
        }
    }

    #[test]
    fn knows_which_places_meet() {
        let home = template("/srv/{share_id}");
        let inside_a_share = format!("/srv/{ID}/shares/{{share_id}}");
        for other in ["/srv/{share_id}", "/srv/{share_id}/data", inside_a_share.as_str()] {
            assert!(home.meets(&template(other)), "{other}");
            assert!(template(other).meets(&home), "{other}");
        }
        for other in ["/srv/a-{share_id}", "/srv/more/{share_id}", "/{share_id}", "/data/{share_id}"] {
            assert!(!home.meets(&template(other)), "{other}");
            assert!(!template(other).meets(&home), "{other}");
        }
        for path in ["/", "/srv", &format!("/srv/{ID}"), &format!("/srv/{ID}/deep/er")] {
            assert!(home.meets_path(Path::new(path)), "{path}");
        }
        for path in ["/srv/legacy", "/data", "/srv2"] {
            assert!(!home.meets_path(Path::new(path)), "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_prints_what_it_read_of_names(text in "[{}a-z_.]{0,6}(\\{share_id\\})?[{}a-z_.]{0,6}") {
            if let Ok(template) = text.parse::<NameTemplate>() {
                prop_assert_eq!(template.to_string(), text);
            }
        }

        #[test]
        fn never_panics_and_prints_what_it_read(text in "/?[{}a-z_./]{0,12}(\\{share_id\\})?[{}a-z_./]{0,12}") {
            if let Ok(template) = text.parse::<PathTemplate>() {
                prop_assert_eq!(template.to_string(), text);
            }
        }
    }
}
