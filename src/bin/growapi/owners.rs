//! Which project a share belongs to: the one that its place on the node says, else the one that owns its pool.

use growd::config::{ApiConfig, IdentityConfig, OwnerConfig};

use crate::nodes::Place;

pub struct Owners {
    owners: Vec<OwnerConfig>,
    /// Nobody is asked who they are and nobody owns a pool: then what no place says is everybody's.
    open: bool,
}

/// Shares of a node that are listed one after the other: of a pool, or of all with an empty name, and of those the ones
/// whose places say the project, or say none when it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub pool: String,
    pub project: Option<String>,
}

impl Stretch {
    pub const fn all() -> Self {
        Self { pool: String::new(), project: None }
    }

    pub fn has(&self, place: &Place) -> bool {
        let project = self.project.as_ref().is_none_or(|project| *project == place.project);
        project && (self.pool.is_empty() || self.pool == place.pool)
    }
}

impl Owners {
    pub fn new(config: &ApiConfig) -> Self {
        let open = config.owners.is_empty() && config.identity == IdentityConfig::Nobody;
        Self { owners: config.owners.clone(), open }
    }

    pub fn owns(&self, project: &str, place: &Place) -> bool {
        self.owner(place).map_or(self.open, |owner| owner == project)
    }

    /// Whether a share's pool alone says whose it is.
    pub fn go_by_pool(&self, place: &Place) -> bool {
        place.project.is_empty() && !self.owners.is_empty()
    }

    pub fn owner<'a>(&'a self, place: &'a Place) -> Option<&'a str> {
        if !place.project.is_empty() {
            return Some(&place.project);
        }
        let mut owners = self.of_node(&place.node.name);
        owners.find(|owner| owner.pool.as_str() == place.pool).map(|owner| owner.project.as_str())
    }

    /// What a caller who asks for `project` is shown as the owner: nobody's are anybody's where nobody owns a pool.
    pub fn shown<'a>(&'a self, place: &'a Place, project: &'a str) -> Option<&'a str> {
        self.owner(place).or(self.open.then_some(project))
    }

    /// The shares of the project on a node: those of its pools, in the order of the pools' names, then those whose places
    /// say it.
    pub fn stretches(&self, project: &str, node: &str) -> Vec<Stretch> {
        let own = self.of_node(node).filter(|owner| owner.project == project);
        let mut pools: Vec<String> = own.map(|owner| owner.pool.to_string()).collect();
        pools.sort_unstable();
        if self.open {
            pools.push(String::new());
        }
        let of_pool = |pool| Stretch { pool, project: Some(String::new()) };
        let of_places = Stretch { pool: String::new(), project: Some(project.to_owned()) };
        pools.into_iter().map(of_pool).chain([of_places]).collect()
    }

    fn of_node(&self, node: &str) -> impl Iterator<Item = &OwnerConfig> {
        self.owners.iter().filter(move |owner| owner.node.as_ref().is_none_or(|of| of == node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::Node;
    use std::sync::Arc;

    fn owner(project: &str, pool: &str, node: Option<&str>) -> OwnerConfig {
        OwnerConfig { project: project.to_owned(), pool: pool.parse().unwrap(), node: node.map(str::to_owned) }
    }

    fn place(node: &str, pool: &str, project: &str) -> Place {
        let node = Node::new(node.to_owned(), "unix:/nowhere".to_owned(), None, std::time::Duration::MAX);
        Place::new(Arc::new(node), pool.to_owned(), project.to_owned())
    }

    fn stretches(owners: &Owners, project: &str, node: &str) -> Vec<(String, Option<String>)> {
        owners.stretches(project, node).into_iter().map(|stretch| (stretch.pool, stretch.project)).collect()
    }

    #[test]
    fn a_pool_has_one_owner_on_all_nodes_or_on_one() {
        let all = vec![owner("p", "z", None), owner("p", "a", Some("n1")), owner("q", "a", Some("n2"))];
        let owners = Owners { owners: all, open: false };
        for (node, owner) in [("n1", Some("p")), ("n2", Some("q")), ("n3", None)] {
            assert_eq!(owners.owner(&place(node, "a", "")), owner);
        }
        assert!(owners.owns("p", &place("n3", "z", "")) && !owners.owns("q", &place("n3", "z", "")));
        assert!(!owners.owns("p", &place("n3", "a", "")), "what nobody owns is nobody's");
        let of = |pool: &str, project: &str| (pool.to_owned(), Some(project.to_owned()));
        assert_eq!(stretches(&owners, "p", "n1"), [of("a", ""), of("z", ""), of("", "p")]);
        assert_eq!(stretches(&owners, "p", "n2"), [of("z", ""), of("", "p")]);
        assert_eq!(stretches(&owners, "r", "n1"), [of("", "r")]);
    }

    #[test]
    fn what_a_place_says_counts_before_all_else() {
        let owners = Owners { owners: vec![owner("p", "a", None)], open: false };
        let nobodys = Owners { owners: Vec::new(), open: true };
        for owners in [&owners, &nobodys] {
            assert!(owners.owns("q", &place("n1", "a", "q")) && !owners.owns("p", &place("n1", "a", "q")));
            assert_eq!(owners.owner(&place("n1", "a", "q")), Some("q"));
        }
        assert!(nobodys.owns("anybody", &place("n1", "a", "")));
        let of = |project: &str| (String::new(), Some(project.to_owned()));
        assert_eq!(stretches(&nobodys, "r", "n1"), [of(""), of("r")]);
        let [of_nobody, of_r] = nobodys.stretches("r", "n1").try_into().unwrap();
        assert!(of_r.has(&place("n1", "a", "r")) && !of_nobody.has(&place("n1", "a", "r")));
        assert!(Stretch::all().has(&place("n1", "a", "r")));
    }
}
