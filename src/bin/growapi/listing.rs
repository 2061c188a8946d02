//! Lists of shares, page by page.
//!
//! The order is that of the nodes' names, then of the pools', then of the shares' ids; the shares whose places say the
//! project come behind those of its pools. A page so asks only the nodes that it takes shares from, and the last share of a
//! page is all that is needed to go on behind it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use growd::model::{ProjectLabel, ShareId};
use growd::wire::proto::Share;

use crate::nodes::{Failure, Node, Nodes};
use crate::owners::{Owners, Stretch};
use crate::refusal::Refusal;
use crate::view::{Details, may_be_shown};

/// Shares in a page, and the most that a node is asked for at once.
pub const PAGE_MOST: usize = 1000;

/// Which shares are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// At most [`PAGE_MOST`].
    pub limit: usize,
    pub offset: usize,
    pub marker: Option<String>,
    /// Shares of every project.
    pub all_projects: bool,
    /// Of all projects only this one.
    pub of_project: Option<String>,
    pub status: Option<String>,
    /// Shares have no names, so whoever looks for one finds nothing.
    pub named: bool,
    /// What the query said besides paging, for the link to the next page.
    rest: Vec<(String, String)>,
}

impl Query {
    /// Takes what is known of a query string and leaves the rest.
    ///
    /// # Errors
    /// 400: a limit or an offset that is no number, a project that can be none.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let mut query = Self { limit: PAGE_MOST, ..Self::default() };
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "limit" => match number("limit", &value)? {
                    0 => {}
                    limit => query.limit = limit.min(PAGE_MOST),
                },
                "offset" => query.offset = number("offset", &value)?,
                "marker" => query.marker = Some(value.into_owned()),
                _ => {
                    let set = !matches!(&*value, "0" | "False" | "false" | "");
                    query.all_projects |= key == "all_tenants" && set;
                    let asked = (!value.is_empty()).then(|| value.clone().into_owned());
                    match &*key {
                        "project_id" => query.of_project = asked.map(|asked| project(&asked)).transpose()?,
                        "status" => query.status = asked,
                        _ => {}
                    }
                    query.named |= matches!(&*key, "name" | "name~" | "display_name") && !value.is_empty();
                    query.rest.push((key.into_owned(), value.into_owned()));
                }
            }
        }
        Ok(query)
    }

    /// The query string of the next page.
    pub fn behind(&self, last: &str) -> String {
        let mut next = form_urlencoded::Serializer::new(String::new());
        next.extend_pairs(&self.rest);
        next.append_pair("limit", &self.limit.to_string()).append_pair("marker", last);
        next.finish()
    }
}

fn project(value: &str) -> Result<String, Refusal> {
    let label = value.parse::<ProjectLabel>();
    label.map(String::from).map_err(|error| Refusal::bad_request(format!("project_id {error}")))
}

fn number(key: &str, value: &str) -> Result<usize, Refusal> {
    match value.parse::<i64>() {
        Ok(number) => {
            usize::try_from(number).map_err(|_| Refusal::bad_request(format!("{key} param must be positive")))
        }
        Err(_) => Err(Refusal::bad_request(format!("{key} param must be an integer"))),
    }
}

/// A page, and what is missing from it.
#[derive(Default)]
pub struct Page {
    pub shares: Vec<Listed>,
    pub more: bool,
    /// Nodes of which shares are not there because they did not answer.
    pub missing: BTreeSet<String>,
    /// Pools of nodes that did answer, by node and name, whose shares are not there because they cannot be read.
    pub unreadable: BTreeSet<(String, String)>,
}

pub struct Listed {
    pub node: Arc<Node>,
    pub share: Share,
    /// Where the list is of a status. To ask again might give another one.
    pub details: Option<Details>,
}

/// # Errors
/// 400 for a marker that is no share of the project; what the nodes say when none of them answers.
pub async fn page(nodes: &Nodes, owners: &Owners, project: &str, query: &Query) -> Result<Page, Refusal> {
    let mut page = Page::default();
    if query.named {
        return Ok(page);
    }
    let project = match &query.of_project {
        Some(other) if query.all_projects => Some(other.as_str()),
        None if query.all_projects => None,
        _ => Some(project),
    };
    let of_node = |node: &Arc<Node>| {
        let stretches = project.map_or_else(|| vec![Stretch::all()], |project| owners.stretches(project, &node.name));
        stretches.into_iter().map(|stretch| (Arc::clone(node), stretch)).collect::<Vec<_>>()
    };
    let mut stretches: VecDeque<(Arc<Node>, Stretch)> = nodes.iter().flat_map(of_node).collect();
    let mut behind = match &query.marker {
        Some(marker) => Some(skip_to(nodes, &mut stretches, marker).await?),
        None => None,
    };
    let mut skip = query.offset;
    let (mut answered, mut failure) = (false, None);
    // Whose shares they are is not known of a pool that cannot be read; one with an owner has the owner's.
    let may_have = |node: &Node, pool: &str| {
        owners.owner(&node.name, pool, "").is_none_or(|owner| project.is_none_or(|project| owner == project))
    };
    'stretches: for (node, Stretch { pool, project }) in stretches {
        let mut behind = behind.take();
        loop {
            // One more than the page takes tells whether another page follows.
            let wanted = match query.status {
                None => (skip + query.limit + 1 - page.shares.len()).min(PAGE_MOST),
                Some(_) => PAGE_MOST,
            };
            let asked = u32::try_from(wanted).unwrap_or(u32::MAX);
            let answer = if node.is_down() {
                Err(Failure::down())
            } else {
                nodes.page(&node, &pool, project.as_deref(), behind, asked).await
            };
            let answer = match answer {
                Ok(answer) => answer,
                // The node has no pool of that name.
                Err(failure) if failure.has_reason("INVALID_REQUEST") && !pool.is_empty() => {
                    answered = true;
                    break;
                }
                // The node has answered, unless its growd still starts.
                Err(Failure::Refused(refused)) if !pool.is_empty() && refused.reason != "STORE_UNAVAILABLE" => {
                    answered = true;
                    page.unreadable.insert((node.name.clone(), pool));
                    break;
                }
                Err(error) => {
                    tracing::warn!(node = node.name, pool, %error, "shares are missing from a list");
                    // A node may be asked for several lists, and is one node.
                    page.missing.insert(node.name.clone());
                    failure.get_or_insert(error);
                    break;
                }
            };
            answered = true;
            let unreadable = answer.unreadable_pools.into_iter().filter(|pool| may_have(&node, pool));
            page.unreadable.extend(unreadable.map(|pool| (node.name.clone(), pool)));
            behind = answer.shares.last().and_then(|share| share.share_id.parse().ok());
            // A growd that does not know of projects yet tells of all shares.
            let of_project = |share: &Share| project.as_ref().is_none_or(|project| *project == share.project_id);
            for share in answer.shares.into_iter().filter(of_project) {
                let mut listed = Listed { node: Arc::clone(&node), share, details: None };
                if let Some(status) = &query.status {
                    // Of most shares it is known without asking for a job.
                    if !may_be_shown(listed.share.status(), status) {
                        continue;
                    }
                    match details(&node, listed.share.clone()).await {
                        Ok(details) if details.status == status => listed.details = Some(details),
                        Ok(_) => continue,
                        Err(node) => {
                            page.missing.insert(node);
                            continue;
                        }
                    }
                }
                if skip > 0 {
                    skip -= 1;
                } else if page.shares.len() == query.limit {
                    page.more = true;
                    break 'stretches;
                } else {
                    page.shares.push(listed);
                }
            }
            if answer.next_page_token.is_empty() || behind.is_none() {
                break;
            }
        }
    }
    match failure {
        Some(failure) if !answered => Err(failure.into_refusal(None)),
        _ => Ok(page),
    }
}

/// The details of a share in a list, which one share does not end. A node that has gone down since it was asked for its
/// shares is not waited for again and again.
///
/// # Errors
/// The name of the node, which has not told them.
pub async fn details(node: &Node, share: Share) -> Result<Details, String> {
    if node.is_down() {
        return Err(node.name.clone());
    }
    let id = share.share_id.clone();
    Details::of(node, share).await.map_err(|error| {
        tracing::warn!(node = node.name, share = id, %error, "a share is missing from a list");
        node.name.clone()
    })
}

/// Leaves the stretches from the one on that has the marker.
async fn skip_to(
    nodes: &Nodes,
    stretches: &mut VecDeque<(Arc<Node>, Stretch)>,
    marker: &str,
) -> Result<ShareId, Refusal> {
    let unknown = || Refusal::bad_request(format!("marker [{marker}] not found"));
    let id: ShareId = marker.parse().map_err(|_| unknown())?;
    let place = match nodes.place(id).await {
        Err(failure) if failure.has_reason("SHARE_NOT_FOUND") => return Err(unknown()),
        place => place.map_err(|failure| failure.into_refusal(None))?,
    };
    let has = |(node, stretch): &(Arc<Node>, Stretch)| Arc::ptr_eq(node, &place.node) && stretch.has(&place);
    let first = stretches.iter().position(has).ok_or_else(unknown)?;
    stretches.drain(..first);
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_and_goes_on_with_all_it_had() {
        let query = Query::parse("limit=2&offset=3&is_public=True&all_tenants=1&x=a%26b").unwrap();
        assert_eq!((query.limit, query.offset, query.all_projects, query.named), (2, 3, true, false));
        assert_eq!(query.behind("m"), "is_public=True&all_tenants=1&x=a%26b&limit=2&marker=m");
        assert_eq!(Query::parse("limit=0").unwrap().limit, PAGE_MOST);
        assert_eq!(Query::parse("limit=5000").unwrap().limit, PAGE_MOST);
        assert!(Query::parse("name=a").unwrap().named);
        let query = Query::parse("status=error&project_id=p&limit=1").unwrap();
        assert_eq!((query.status.as_deref(), query.of_project.as_deref()), (Some("error"), Some("p")));
        assert_eq!(query.behind("m"), "status=error&project_id=p&limit=1&marker=m");
        assert_eq!(Query::parse("status=&project_id=").unwrap().status, None);
        assert!(!Query::parse("all_tenants=False").unwrap().all_projects);
        for (text, problem) in [
            ("limit=a", "limit param must be an integer"),
            ("limit=", "limit param must be an integer"),
            ("limit=-1", "limit param must be positive"),
            ("offset=1.5", "offset param must be an integer"),
        ] {
            assert_eq!(Query::parse(text).unwrap_err().message, problem);
        }
    }
}
