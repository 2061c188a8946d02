//! Which project a share belongs to: the one that owns its pool.

use growd::config::OwnerConfig;

pub struct Owners(Vec<OwnerConfig>);

impl Owners {
    pub fn new(owners: &[OwnerConfig]) -> Self {
        Self(owners.to_vec())
    }

    /// Without any owner, every share is everybody's.
    pub fn owns(&self, project: &str, node: &str, pool: &str) -> bool {
        self.0.is_empty() || self.owner(node, pool) == Some(project)
    }

    pub fn owner(&self, node: &str, pool: &str) -> Option<&str> {
        self.of_node(node).find(|owner| owner.pool.as_str() == pool).map(|owner| owner.project.as_str())
    }

    /// The pools of the project on a node, in the order of their names; an empty name stands for all pools.
    pub fn pools(&self, project: &str, node: &str) -> Vec<String> {
        if self.0.is_empty() {
            return vec![String::new()];
        }
        let own = self.of_node(node).filter(|owner| owner.project == project);
        let mut pools: Vec<String> = own.map(|owner| owner.pool.to_string()).collect();
        pools.sort_unstable();
        pools
    }

    fn of_node(&self, node: &str) -> impl Iterator<Item = &OwnerConfig> {
        self.0.iter().filter(move |owner| owner.node.as_ref().is_none_or(|of| of == node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(project: &str, pool: &str, node: Option<&str>) -> OwnerConfig {
        OwnerConfig { project: project.to_owned(), pool: pool.parse().unwrap(), node: node.map(str::to_owned) }
    }

    #[test]
    fn a_pool_has_one_owner_on_all_nodes_or_on_one() {
        let owners = Owners::new(&[owner("p", "z", None), owner("p", "a", Some("n1")), owner("q", "a", Some("n2"))]);
        assert_eq!(owners.owner("n1", "a"), Some("p"));
        assert_eq!(owners.owner("n2", "a"), Some("q"));
        assert_eq!(owners.owner("n3", "a"), None);
        assert!(owners.owns("p", "n3", "z") && !owners.owns("q", "n3", "z"));
        assert_eq!(owners.pools("p", "n1"), ["a", "z"]);
        assert_eq!(owners.pools("p", "n2"), ["z"]);
        assert_eq!(owners.pools("r", "n1"), [""; 0]);
        let nobody = Owners::new(&[]);
        assert!(nobody.owns("anybody", "n1", "a"));
        assert_eq!(nobody.pools("anybody", "n1"), [""]);
    }
}
