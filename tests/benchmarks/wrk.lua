-- Each request has the next of the sessions that are given after `--`, so that requests at the
-- same time do not wait for one another's row.
local cookies, last = {}, 0

function init(args)
  for index, key in ipairs(args) do
    cookies[index] = "sessionid=" .. key
  end
end

function request()
  last = last % #cookies + 1
  wrk.headers["Cookie"] = cookies[last]
  return wrk.format()
end
