//! Static tokens: a line for each, with the hash of the token, the project and the role.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Project, Role, TokenHash, Who, hash};

#[derive(Debug)]
pub struct TokenFile {
    tokens: HashMap<TokenHash, Who>,
}

impl TokenFile {
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, file: &str) -> Result<Self> {
        let mut tokens = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(hash) = words.next() else { continue };
            let (Some(project), Some(role), None) = (words.next(), words.next(), words.next()) else {
                bail!("{file}:{number}: a line is HASH PROJECT ROLE, separated by blanks");
            };
            let Some(hash) = parse_hash(hash) else {
                bail!("{file}:{number}: the hash is not 64 hexadecimal digits: make one with `growapi hash-token`");
            };
            let Some(role) = Role::named(role) else {
                bail!("{file}:{number}: {role:?} is not a role: write reader, member or admin");
            };
            let who = Who { project: Project::Id(project.to_owned()), role: Some(role) };
            if tokens.insert(hash, who).is_some() {
                bail!("{file}:{number}: the hash is there already");
            }
        }
        Ok(Self { tokens })
    }

    pub fn who(&self, token: &[u8]) -> Option<Who> {
        self.tokens.get(&hash(token)).cloned()
    }
}

fn parse_hash(text: &str) -> Option<TokenHash> {
    let mut hash = TokenHash::default();
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash() {
        let text = format!(
            "# who may ask\n{} p1 member # the build\n\n{} p2 admin\n",
            hex(&hash(b"first")),
            hex(&hash(b"second"))
        );
        let file = TokenFile::parse(&text, "f").unwrap();
        let who = |project: &str, role| Some(Who { project: Project::Id(project.to_owned()), role: Some(role) });
        assert_eq!(file.who(b"first"), who("p1", Role::Member));
        assert_eq!(file.who(b"second"), who("p2", Role::Admin));
        for wrong in [&b""[..], b"First", b"first ", hex(&hash(b"first")).as_bytes()] {
            assert_eq!(file.who(wrong), None);
        }
        assert_eq!(TokenFile::parse("", "f").unwrap().who(b"first"), None);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let hash = "0".repeat(64);
        for (text, problem) in [
            (format!("\n{hash} p"), "f:2: a line is HASH PROJECT ROLE, separated by blanks".to_owned()),
            (format!("{hash} p member x"), "f:1: a line is HASH PROJECT ROLE, separated by blanks".to_owned()),
            (format!("{hash} p owner"), "f:1: \"owner\" is not a role: write reader, member or admin".to_owned()),
            (
                "secret p member".to_owned(),
                "f:1: the hash is not 64 hexadecimal digits: make one with `growapi hash-token`".to_owned(),
            ),
            (format!("{hash} p member\n{hash} q member"), "f:2: the hash is there already".to_owned()),
        ] {
            assert_eq!(TokenFile::parse(&text, "f").unwrap_err().to_string(), problem);
        }
    }
}
