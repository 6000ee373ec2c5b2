# A monthly quota in front of an API, with Ruby's standard library: ruby examples/quota.rb 127.0.0.1:8080 42 3
#
# Asks for one mail of user 42, who may send 3 a month. Exit code 0: go ahead; 1: the quota is used up; 2: nobody
# could be asked, and what that means is the application's decision.

require "json"
require "socket"

# One connection. Requests and replies are lines of JSON, and replies come in the order of the requests.
class Karma
  class Refused < StandardError; end

  def initialize(node)
    host, port = node.split(":")
    @socket = Socket.tcp(host, Integer(port), connect_timeout: 0.5)
  end

  def call(op, **fields)
    @socket.puts(JSON.generate({ v: 2, op: op, **fields }))
    raise IOError, "no answer" unless @socket.wait_readable(0.5)

    reply = JSON.parse(@socket.gets || raise(IOError, "the connection was closed"))
    reply["success"] ? reply["response"] : raise(Refused, "#{reply["error_code"]}: #{reply["response"]}")
  end
end

node, user, limit = ARGV
begin
  found = Karma.new(node).call(
    "limit.consume", series: "mails", key: Integer(user), value: 1, limit: Integer(limit), window: "month"
  )
rescue SystemCallError, IOError, Karma::Refused => e
  warn "unknown: #{e.message}"
  exit 2
end
puts "allowed=#{found["allowed"]} used=#{found["used"]} remaining=#{found["remaining"]}"
exit(found["allowed"] ? 0 : 1)
