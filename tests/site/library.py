"""What the site's tests begin with: rows, and a user who is logged in."""

from django.contrib.auth.models import Group, User

from tests.models import Author, Book
from tests.support.client import Client


async def make_library() -> None:
    """Make an author with one book, and a user with two groups."""
    ada = await Author.objects.acreate(name="Ada")
    await Book.objects.acreate(title="A", author=ada)
    user = await User.objects.acreate_user("grace", password="secret")
    for name in ("navy", "pioneers"):
        await user.groups.aadd(await Group.objects.acreate(name=name))


async def log_in(client: Client) -> None:
    await client.get("/login/")
    answer = await client.post("/login/", {"username": "grace"})
    assert (answer.status, answer["Location"]) == (302, "/me/")
