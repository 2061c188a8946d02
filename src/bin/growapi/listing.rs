//! Lists of shares, page by page.
//!
//! The order is that of the nodes' names, then of the pools', then of the shares' ids; the shares whose places say the
//! project come behind those of its pools. A page so asks only the nodes that it takes shares from, and more only while one
//! of these is slow; the last share of a page is all that is needed to go on behind it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use growd::model::{ProjectLabel, Reason, ShareId};
use growd::wire::proto::{ListSharesResponse, Share};
use tokio::time::sleep;

use crate::nodes::{Failure, Node, Nodes, Place};
use crate::owners::{Owners, Stretch};
use crate::refusal::Refusal;
use crate::view::{Details, may_be_shown};

/// Shares in a page, and the most that a node is asked for at once.
pub const PAGE_MOST: usize = 1000;
/// A node that takes longer than this is slow.
const SLOW: Duration = Duration::from_secs(1);
/// How many lists are asked for at once from then on.
const AHEAD: usize = 32;

/// What clients look for shares by and growd does not know. They would take all shares, if these were listed instead, for
/// the ones they look for.
const UNKNOWN: &str = "name name~ display_name display_name~ description description~ display_description host metadata \
    extra_specs availability_zone user_id share_type_id share_network_id share_server_id share_group_id snapshot_id \
    export_location_id export_location_path encryption_key_ref";

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
    /// It asks for what no share here has.
    pub of_none: bool,
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
                "marker" => query.marker = Some(value.clone().into_owned()),
                "all_tenants" => query.all_projects |= is_true(&value),
                "is_soft_deleted" => query.of_none |= is_true(&value),
                "project_id" if !value.is_empty() => query.of_project = Some(project(&value)?),
                "status" if !value.is_empty() => query.status = Some(value.clone().into_owned()),
                key => query.of_none |= !value.is_empty() && UNKNOWN.split(' ').any(|unknown| unknown == key),
            }
            if !matches!(&*key, "limit" | "offset" | "marker") {
                query.rest.push((key.into_owned(), value.into_owned()));
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

fn is_true(value: &str) -> bool {
    !matches!(value, "0" | "False" | "false" | "")
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

impl Page {
    /// What the answer's Warning says; `None` when nothing is missing.
    pub fn warning(&self) -> Option<String> {
        let (nodes, pools) = (self.missing.len(), self.unreadable.len());
        let missing = [(nodes, "nodes that do not answer"), (pools, "pools that cannot be read")];
        let missing = missing.into_iter().filter(|(count, _)| *count > 0);
        let missing: Vec<_> = missing.map(|(count, what)| format!("of {count} {what}")).collect();
        let missing = missing.join(" and ");
        (!missing.is_empty()).then(|| format!("199 growapi \"the shares {missing} are missing\""))
    }
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
    let mut list = List {
        nodes,
        owners,
        project: match &query.of_project {
            Some(other) if query.all_projects => Some(other.as_str()),
            None if query.all_projects => None,
            _ => Some(project),
        },
        query,
        skip: query.offset,
        page: Page::default(),
        answered: false,
        failure: None,
    };
    if query.of_none {
        return Ok(list.page);
    }
    let mut stretches: VecDeque<_> = nodes.iter().flat_map(|node| list.stretches(node)).collect();
    let mut behind = match &query.marker {
        Some(marker) => Some(skip_to(nodes, &mut stretches, marker).await?),
        None => None,
    };
    // One after the other, until one is slow: the others are not to wait for each that is.
    let (mut asked, mut width) = (FuturesOrdered::new(), 1);
    while !list.page.more {
        while asked.len() < width
            && let Some((node, stretch)) = stretches.pop_front()
        {
            let (behind, wanted) = (behind.take(), list.wanted());
            asked.push_back(async move {
                let answer = nodes.page(&node, &stretch.pool, stretch.project.as_deref(), behind, wanted).await;
                (node, stretch, behind, answer)
            });
        }
        let answered = tokio::select! {
            answered = asked.next() => answered,
            () = sleep(SLOW), if width == 1 => {
                width = AHEAD;
                continue;
            }
        };
        let Some((node, stretch, behind, answer)) = answered else { break };
        list.read(&node, &stretch, behind, answer).await;
    }
    match list.failure {
        Some(failure) if !list.answered => Err(failure.into_refusal(None)),
        _ => Ok(list.page),
    }
}

/// A page in the making.
struct List<'a> {
    nodes: &'a Nodes,
    owners: &'a Owners,
    /// Whose shares are listed; `None` for those of all projects.
    project: Option<&'a str>,
    query: &'a Query,
    /// How many shares are still to be passed over.
    skip: usize,
    page: Page,
    /// Whether any node has answered.
    answered: bool,
    /// Why the first one did not that has not answered.
    failure: Option<Failure>,
}

impl List<'_> {
    fn stretches(&self, node: &Arc<Node>) -> Vec<(Arc<Node>, Stretch)> {
        let stretches =
            self.project.map_or_else(|| vec![Stretch::all()], |project| self.owners.stretches(project, &node.name));
        stretches.into_iter().map(|stretch| (Arc::clone(node), stretch)).collect()
    }

    /// Takes the shares of a stretch from those behind a share on, until the page is full.
    async fn read(
        &mut self,
        node: &Arc<Node>,
        stretch: &Stretch,
        mut behind: Option<ShareId>,
        mut answer: Result<ListSharesResponse, Failure>,
    ) {
        while let Some(answered) = self.noted(node, stretch, behind, answer) {
            let unreadable = answered.unreadable_pools.into_iter().filter(|pool| self.may_have(node, pool));
            let unreadable: Vec<_> = unreadable.map(|pool| (node.name.clone(), pool)).collect();
            self.page.unreadable.extend(unreadable);
            behind = answered.shares.last().and_then(|share| share.share_id.parse().ok());
            // A growd that does not know of projects yet tells of all shares.
            let of_project =
                |share: &Share| stretch.project.as_ref().is_none_or(|project| *project == share.project_id);
            for share in answered.shares.into_iter().filter(of_project) {
                let Some(listed) = self.chosen(node, share).await else { continue };
                if self.skip > 0 {
                    self.skip -= 1;
                } else if self.page.shares.len() == self.query.limit {
                    self.page.more = true;
                    return;
                } else {
                    self.page.shares.push(listed);
                }
            }
            if answered.next_page_token.is_empty() || behind.is_none() {
                return;
            }
            let (project, wanted) = (stretch.project.as_deref(), self.wanted());
            answer = self.nodes.page(node, &stretch.pool, project, behind, wanted).await;
        }
    }

    /// How many shares to ask for: one more than the page takes tells whether another page follows.
    fn wanted(&self) -> u32 {
        let wanted = match self.query.status {
            None => (self.skip + self.query.limit + 1 - self.page.shares.len()).min(PAGE_MOST),
            Some(_) => PAGE_MOST,
        };
        u32::try_from(wanted).unwrap_or(u32::MAX)
    }

    /// The next shares of a stretch; `None` when the node does not tell them, which is noted.
    fn noted(
        &mut self,
        node: &Node,
        Stretch { pool, .. }: &Stretch,
        behind: Option<ShareId>,
        answer: Result<ListSharesResponse, Failure>,
    ) -> Option<ListSharesResponse> {
        match answer {
            Ok(answer) => {
                self.answered = true;
                return Some(answer);
            }
            // The node has no pool of that name. One that it had for the page before may be gone, or it refuses to go on.
            Err(failure) if failure.has_reason(Reason::InvalidRequest) && !pool.is_empty() && behind.is_none() => {
                self.answered = true;
            }
            Err(error) => {
                tracing::warn!(node = node.name, pool, %error, "shares are missing from a list");
                match error {
                    // The node has answered, unless its growd still starts.
                    Failure::Refused(refused) if !pool.is_empty() && !refused.has(Reason::StoreUnavailable) => {
                        self.answered = true;
                        self.page.unreadable.insert((node.name.clone(), pool.clone()));
                    }
                    error => {
                        // A node may be asked for several lists, and is one node.
                        self.page.missing.insert(node.name.clone());
                        self.failure.get_or_insert(error);
                    }
                }
            }
        }
        None
    }

    /// The share, unless it is of another status than the list. Of most it is known without asking for a job.
    async fn chosen(&mut self, node: &Arc<Node>, share: Share) -> Option<Listed> {
        let Some(status) = &self.query.status else {
            return Some(Listed { node: Arc::clone(node), share, details: None });
        };
        if !may_be_shown(share.status(), status) {
            return None;
        }
        match details(node, share.clone()).await {
            Ok(details) if details.status == status => {
                Some(Listed { node: Arc::clone(node), share, details: Some(details) })
            }
            Ok(_) => None,
            Err(node) => {
                self.page.missing.insert(node);
                None
            }
        }
    }

    /// Whose shares they are is not known of a pool that cannot be read; one with an owner has the owner's.
    fn may_have(&self, node: &Arc<Node>, pool: &str) -> bool {
        let pool = Place::new(Arc::clone(node), pool.to_owned(), String::new());
        self.owners.owner(&pool).is_none_or(|owner| self.project.is_none_or(|project| owner == project))
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
    let details = node.job_of(&share).await.and_then(|job| Details::new(share, job));
    details.map_err(|error| {
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
        Err(failure) if failure.has_reason(Reason::ShareNotFound) => return Err(unknown()),
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
        assert_eq!((query.limit, query.offset, query.all_projects, query.of_none), (2, 3, true, false));
        assert_eq!(query.behind("m"), "is_public=True&all_tenants=1&x=a%26b&limit=2&marker=m");
        assert_eq!(Query::parse("limit=0").unwrap().limit, PAGE_MOST);
        assert_eq!(Query::parse("limit=5000").unwrap().limit, PAGE_MOST);
        for (text, of_none) in [
            ("name=a", true),
            ("name=", false),
            ("metadata=%7B%27a%27%3A+%27b%27%7D", true),
            ("is_soft_deleted=True", true),
            ("is_soft_deleted=False", false),
        ] {
            assert_eq!(Query::parse(text).unwrap().of_none, of_none, "{text}");
        }
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
