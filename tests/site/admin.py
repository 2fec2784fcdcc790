"""Django's admin as a browser uses it."""

import re

import httpx

USER, PASSWORD = "root", "a secret of one's own"
GROUPS = "/admin/auth/group/"


def token(page: httpx.Response) -> str:
    """Return the CSRF token in a page's form."""
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert found is not None, page.text
    return found[1]


async def submit(client: httpx.AsyncClient, address: str, **fields: str) -> httpx.Response:
    """Fetch the page at an address and send its form back with *fields*, as a browser does."""
    page = await client.get(address)
    assert page.status_code == 200, page.text
    return await client.post(address, data={"csrfmiddlewaretoken": token(page), **fields})


async def work_in_the_admin(client: httpx.AsyncClient) -> None:
    """Log in, add a group, rename it, look at the users, log out."""
    answer = await client.get(GROUPS)
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/admin/login/?next={GROUPS}")
    login = answer.headers["Location"]
    answer = await submit(client, login, username=USER, password="a guess")
    assert answer.status_code == 200
    assert "Please enter the correct username and password" in answer.text
    answer = await client.post(login, data={"username": USER, "password": PASSWORD})
    assert answer.status_code == 403, "accepted without the CSRF token"
    answer = await submit(client, login, username=USER, password=PASSWORD, next=GROUPS)
    assert (answer.status_code, answer.headers["Location"]) == (302, GROUPS)

    answer = await submit(client, f"{GROUPS}add/", name="navy", _save="Save")
    assert (answer.status_code, answer.headers["Location"]) == (302, GROUPS)
    page = await client.get(GROUPS)
    assert page.status_code == 200
    assert "was added successfully" in page.text
    found = re.search(rf'href="({GROUPS}\d+/change/)">navy</a>', page.text)
    assert found is not None, page.text
    edit = found[1]
    page = await client.get(edit)
    assert page.status_code == 200
    assert 'value="navy"' in page.text
    answer = await submit(client, edit, name="marines", _save="Save")
    assert (answer.status_code, answer.headers["Location"]) == (302, GROUPS)
    page = await client.get(GROUPS)
    assert "was changed successfully" in page.text
    assert "marines" in page.text
    assert "navy" not in page.text

    page = await client.get("/admin/auth/user/")
    assert page.status_code == 200
    assert "root@example.com" in page.text
    page = await client.get("/admin/")
    answer = await client.post("/admin/logout/", data={"csrfmiddlewaretoken": token(page)})
    assert answer.status_code == 200
    assert (await client.get(GROUPS)).status_code == 302
