"""The portal's part of a mentor's story: what is wanted, what was confirmed, what is open and why."""

import shlex
from collections.abc import Iterator

from certjob.alert_causes import Cause, PushAlert, advise, explain, find_cause
from certjob.plain import harmless
from certjob.story import Portal, Story
from certjob.terminal_page import PageLine


def portal_lines(story: Story) -> Iterator[PageLine]:
    """Yield the lines of the section; nothing where there is no portal and never was."""
    portal, person = story.portal, story.person
    has_portal = story.mentor.organisation.has_portal
    if not has_portal and portal.confirmed is None and portal.status is None:
        return
    if not has_portal:
        text = f"{person.slug} has no portal (any more): nothing is pushed"
        yield PageLine(text=text, bullet="- ", indent=2)
    elif person.wanted is None:
        text = "wanted: not known (the contact id or the portal has changed); the next run pushes what is right"
        yield PageLine(text=text, bullet="- ", indent=2)
    else:
        yield PageLine(text=f"wanted: {_shown(person.wanted)}", bullet="- ", indent=2)
    if portal.confirmed_at is None:
        yield PageLine(text="the portal has confirmed nothing yet", bullet="- ", indent=2)
    else:
        text = f"the portal last confirmed: {_shown(bool(portal.confirmed))}, {story.moment(portal.confirmed_at)}"
        yield PageLine(text=text, bullet="- ", indent=2)
    if has_portal and person.contact_id is None:
        text = "there is no contact id: nothing can be pushed; add it in the app"
        yield PageLine(text=text, bullet="- ", indent=2, style="red")
    if portal.wanted_at is not None:
        yield from _open_push(story, portal)
    if portal.resolved_failures:
        number = portal.resolved_failures
        text = f"earlier trouble that is over: {number:,} {'time' if number == 1 else 'times'}"
        yield PageLine(text=text, bullet="- ", indent=2, style="dim")


def _open_push(story: Story, portal: Portal) -> Iterator[PageLine]:
    """What is still to be pushed, why it waits, and what to do about it."""
    push = _push_alert(story)
    since = story.moment(push.wanted_at)
    may_be = "hidden" if push.visible else "visible"
    text = f"not confirmed since {since}: to be {_shown(push.visible)} ({push.status}); may still be {may_be}"
    yield PageLine(text=text, bullet="- ", indent=2, style="yellow" if push.visible else "red")
    cause = find_cause(push)
    if cause is Cause.UNTRIED:
        yield PageLine(text="It goes out with the next `certjob run` or `certjob deliver`.", indent=4)
    else:
        yield PageLine(text=explain(cause, visible=push.visible), indent=4)
        command = f"certjob resync {shlex.quote(push.member_no)} --organisation {story.person.slug}"
        what_to_do = advise(cause, resync=f"`{harmless(command)}`", next_try=_next_try(story, push))
        yield PageLine(head="What to do: ", text=what_to_do, indent=4)
    if push.error:
        calls = f", {push.calls:,} {'call' if push.calls == 1 else 'calls'} so far" if push.calls else ""
        when = f" {story.moment(push.last_failed_at)}" if push.last_failed_at else ""
        yield PageLine(text=harmless(f"Last noted{when}{calls}: {push.error}"), indent=4, style="dim")


def _next_try(story: Story, push: PushAlert) -> str:
    if push.next_attempt_at <= story.person.now:
        return "when `certjob deliver` runs next, normally every 15 minutes"
    return f"at {story.moment(push.next_attempt_at)}, or soon after"


def _push_alert(story: Story) -> PushAlert:
    """Return the open push as the alerts have it; there must be one."""
    person, portal = story.person, story.portal
    return PushAlert(
        mentor_id=person.id,
        organisation_id=person.organisation_id,
        member_no=person.member_no,
        full_name=person.full_name or person.member_no,
        visible=bool(portal.visible),
        sentence="",
        error=portal.error,
        calls=portal.calls or 0,
        wanted_at=portal.wanted_at or person.now,
        last_failed_at=portal.last_failed_at,
        status=portal.status or "pending",
        rounds=portal.rounds or 0,
        next_attempt_at=portal.next_attempt_at or person.now,
        failure_kind=portal.failure_kind,
        is_claimed=bool(portal.is_claimed),
        has_contact_id=person.contact_id is not None,
        has_new_contact_id=person.wanted is None,
    )


def _shown(visible: bool) -> str:
    return "shown" if visible else "hidden"
