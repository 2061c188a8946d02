//! Where the shares of a pool are: `/srv/shares/{share_id}`, or `/srv/{project_id}/{share_id}`.
//!
//! Pure text: never looks at a file system. One template gives exactly one place for a share, or one for each project,
//! and one place belongs to at most one share, so no list of shares is needed that could be wrong.

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use uuid::Uuid;

use crate::model::{ProjectLabel, ShareId};

const PLACEHOLDER: &str = "{share_id}";
const PROJECT: &str = "{project_id}";

/// An absolute path in which one component holds `{share_id}`, and one before it may be `{project_id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    directory: PathBuf,
    /// What is between the component of the project and that of the share, mostly nothing. `None` without projects.
    below_project: Option<PathBuf>,
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
    #[error(
        "{text:?} contains a brace outside of {PLACEHOLDER} and, in paths, {PROJECT}, the only placeholders there are"
    )]
    UnknownPlaceholder { text: String },
    #[error(
        "{text:?} has {PROJECT} in a wrong place: it is a whole component, once, before the one with {PLACEHOLDER}"
    )]
    ProjectIdPlace { text: String },
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
    /// The directory whose entries are the shares or hold them, or those of the projects.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether places say which project a share belongs to.
    pub const fn has_projects(&self) -> bool {
        self.below_project.is_some()
    }

    /// Where the shares of a project are, below [`Self::directory`]. Without projects it is empty.
    pub fn folder_of(&self, project: &ProjectLabel) -> PathBuf {
        let Some(below) = &self.below_project else { return PathBuf::new() };
        let mut folder = PathBuf::from(project.as_str());
        // Joining an empty path would add a slash.
        folder.extend(below);
        folder
    }

    /// The project that an entry of [`Self::directory`] belongs to, `None` for a stranger.
    pub fn project_of(&self, entry_name: &OsStr) -> Option<ProjectLabel> {
        self.below_project.as_ref()?;
        project_named(entry_name)
    }

    pub fn path_of(&self, project: &ProjectLabel, share: ShareId) -> PathBuf {
        let mut path = self.directory.clone();
        path.extend(&self.folder_of(project));
        path.extend(&self.relative_of(share));
        path
    }

    /// The share's place below [`Self::directory`], or below the folder of its project.
    pub fn relative_of(&self, share: ShareId) -> PathBuf {
        let mut relative = PathBuf::from(self.name.name_of(share));
        // Joining an empty path would add a slash.
        relative.extend(&self.tail);
        relative
    }

    /// The share that an entry of [`Self::directory`], or of a project's folder, belongs to, `None` for a stranger.
    pub fn share_of(&self, entry_name: &OsStr) -> Option<ShareId> {
        self.name.share_of(entry_name.to_str()?)
    }

    /// Whether a share of this template and one of the other could be at the same place, or one inside the other.
    pub fn meets(&self, other: &Self) -> bool {
        self.parts().zip(other.parts()).all(|(mine, theirs)| match (mine, theirs) {
            (Part::Fixed(mine), Part::Fixed(theirs)) => mine == theirs,
            (Part::Share, Part::Fixed(name)) => self.share_of(name).is_some(),
            (Part::Fixed(name), Part::Share) => other.share_of(name).is_some(),
            (Part::Project, Part::Fixed(name)) | (Part::Fixed(name), Part::Project) => project_named(name).is_some(),
            (Part::Project, Part::Project) => true,
            (Part::Project, Part::Share) => other.names_could_be_projects(),
            (Part::Share, Part::Project) => self.names_could_be_projects(),
            // Ids are of one length, so two patterns give the same names when they are the same.
            (Part::Share, Part::Share) => self.name == other.name,
        })
    }

    /// Whether a share of this template could be at the path, inside it or around it.
    pub fn meets_path(&self, path: &Path) -> bool {
        self.parts().zip(names(path)).all(|(part, name)| match part {
            Part::Fixed(fixed) => fixed == name,
            Part::Project => project_named(name).is_some(),
            Part::Share => self.share_of(name).is_some(),
        })
    }

    /// Whether a share's directory could be taken for a project's.
    fn names_could_be_projects(&self) -> bool {
        project_named(OsStr::new(&self.name.name_of(ShareId::from_uuid(Uuid::nil())))).is_some()
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let fixed = |path| names(path).map(Part::Fixed);
        let between = self.below_project.iter().flat_map(move |below| [Part::Project].into_iter().chain(fixed(below)));
        fixed(&self.directory).chain(between).chain([Part::Share]).chain(fixed(&self.tail))
    }
}

enum Part<'a> {
    Fixed(&'a OsStr),
    Project,
    Share,
}

/// The project whose directory has this name. Names that administrators give to other things beside them, such as
/// `lost+found` or `.snapshots`, are no projects.
fn project_named(name: &OsStr) -> Option<ProjectLabel> {
    let name = name.to_str()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.starts_with('.') || !name.chars().all(plain) {
        return None;
    }
    name.parse().ok().filter(|project: &ProjectLabel| !project.is_empty())
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
        let wrong = || TemplateError::ProjectIdPlace { text: text.to_owned() };
        let (projects, place) = match text.split_once(PROJECT) {
            Some((before, after)) => match (before.ends_with('/'), after.strip_prefix('/')) {
                (true, Some(place)) if !before.contains(PLACEHOLDER) && !place.contains(PROJECT) => {
                    (Some(before), place)
                }
                _ => return Err(wrong()),
            },
            None => (None, text),
        };
        if projects.is_some_and(|before| before.contains(['{', '}'])) {
            return Err(TemplateError::UnknownPlaceholder { text: text.to_owned() });
        }
        let (before, after) = around_share_id(text, place)?;
        let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
        let (suffix, tail) = after.split_once('/').unwrap_or((after, ""));
        Ok(Self {
            directory: Path::new("/").join(projects.map_or(folder, |before| before.trim_end_matches('/'))),
            below_project: projects.map(|_| PathBuf::from(folder)),
            name: NameTemplate { prefix: prefix.to_owned(), suffix: suffix.to_owned() },
            tail: PathBuf::from(tail),
        })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = self.directory.clone();
        if let Some(below) = &self.below_project {
            path.push(PROJECT);
            path.extend(below);
        }
        path.push(self.name.to_string());
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
        let (prefix, suffix) = around_share_id(text, text)?;
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

/// What comes before the placeholder and behind it, in a part of the text.
fn around_share_id<'p>(text: &str, part: &'p str) -> Result<(&'p str, &'p str), TemplateError> {
    let (before, after) =
        part.split_once(PLACEHOLDER).ok_or_else(|| TemplateError::NoShareId { text: text.to_owned() })?;
    if after.contains(PLACEHOLDER) {
        return Err(TemplateError::ManyShareIds { text: text.to_owned() });
    }
    if before.contains(['{', '}']) || after.contains(['{', '}']) {
        return Err(TemplateError::UnknownPlaceholder { text: text.to_owned() });
    }
    Ok((before, after))
}
