<?php
/**
 * A client for services of pgbackend.rpc, by HTTP. One file, PHP 8.1 or later on 64 bits, no
 * dependency. docs/howto/rpc-php.md has examples, docs/reference/rpc-message.md what is sent.
 */

declare(strict_types=1);

namespace Pgbackend\Rpc;

/** What the service answered instead of a result, or why there is no answer. */
class RemoteError extends \RuntimeException
{
    /** @param array<string, mixed> $details */
    public function __construct(
        public readonly string $errorCode,
        string $message = '',
        public readonly array $details = [],
        /** False where anybody on the way may have written the error. */
        public readonly bool $sealed = true,
    ) {
        parent::__construct($message === '' ? $errorCode : "$errorCode: $message");
    }
}

/** A value of a type that PHP has not: it is written as {"$tag": content}. */
final class Tagged
{
    public function __construct(public readonly string $tag, public readonly mixed $content)
    {
    }

    /** A decimal, "12.50": a float would not be exact. */
    public static function decimal(string $digits): self
    {
        return new self('$dec', $digits);
    }

    /** A date, "2017-01-01". */
    public static function date(string $date): self
    {
        return new self('$date', $date);
    }

    /** A time of day, "12:30:00.000000". */
    public static function time(string $time): self
    {
        return new self('$time', $time);
    }

    /** A time without a zone, "2017-01-01T12:30:00.000000". A DateTimeInterface has one. */
    public static function naive(string $datetime): self
    {
        return new self('$dt', $datetime);
    }

    /** A duration in microseconds. */
    public static function microseconds(int $microseconds): self
    {
        return new self('$td', (string) $microseconds);
    }

    public static function uuid(string $uuid): self
    {
        return new self('$uuid', strtolower($uuid));
    }

    public static function bytes(string $raw): self
    {
        return new self('$bytes', base64_encode($raw));
    }

    /** A JSON document, for a JSONField: arrays and objects as json_encode takes them. */
    public static function json(mixed $document): self
    {
        return new self('$json', $document);
    }

    /** @param list<mixed> $items */
    public static function tuple(array $items): self
    {
        return new self('$tuple', array_map(Wire::encode(...), $items));
    }

    /** @param list<mixed> $items */
    public static function set(array $items): self
    {
        return new self('$set', array_map(Wire::encode(...), $items));
    }

    /** A dictionary of any array, also of an empty one or a list. @param array<mixed> $pairs */
    public static function dict(array $pairs): self
    {
        $written = [];
        foreach ($pairs as $key => $item) {
            $written[] = [Wire::encode($key), Wire::encode($item)];
        }
        return new self('$dict', $written);
    }
}

/** What the service computes: fields, arithmetic, aggregates, functions. */
final class Expr
{
    public static function f(string $path): Tagged
    {
        return new Tagged('$f', $path);
    }

    public static function outer(string $path): Tagged
    {
        return new Tagged('$outer', $path);
    }

    public static function value(mixed $value): Tagged
    {
        return new Tagged('$value', Wire::encode($value));
    }

    /** Arithmetic: + - * / % ^ & | # << >>. */
    public static function op(string $operator, mixed $left, mixed $right): Tagged
    {
        return new Tagged('$op', [$operator, Wire::encode($left), Wire::encode($right)]);
    }

    /** An aggregate by Django's name: Expr::agg('Count', '*'), Expr::agg('Sum', 'price'). */
    public static function agg(
        string $name,
        mixed $expression,
        bool $distinct = false,
        ?Q $filter = null,
        mixed $default = null,
    ): Tagged {
        $options = new \stdClass();
        if ($distinct) {
            $options->distinct = true;
        }
        if ($filter !== null) {
            $options->filter = Wire::encode($filter);
        }
        if ($default !== null) {
            $options->default = Wire::encode($default);
        }
        return new Tagged('$agg', [$name, [self::operand($expression)], $options]);
    }

    /** A function by Django's name; a string is a field's name. */
    public static function fn(string $name, mixed ...$expressions): Tagged
    {
        return new Tagged('$fn', [$name, array_map(self::operand(...), array_values($expressions))]);
    }

    /** An order: Expr::order('price', 'desc', 'last'). */
    public static function order(mixed $by, string $way = 'asc', ?string $nulls = null): Tagged
    {
        return new Tagged('$order', [self::operand($by), $way, $nulls]);
    }

    public static function exists(QuerySet $queryset): Tagged
    {
        return new Tagged('$exists', $queryset->tree());
    }

    public static function subquery(QuerySet $queryset): Tagged
    {
        return new Tagged('$subquery', $queryset->tree());
    }

    /** The result of an earlier request of the same gather(), or a part of it. */
    public static function ref(int $index, string|int ...$path): Tagged
    {
        return new Tagged('$ref', [$index, ...array_values($path)]);
    }

    private static function operand(mixed $expression): mixed
    {
        if ($expression === '*') {
            return '*';
        }
        return Wire::encode(match (true) {
            is_string($expression) => self::f($expression),
            $expression instanceof Tagged, $expression instanceof Q => $expression,
            default => self::value($expression),
        });
    }
}

/** A condition: Q::of(price__lt: 5)->or(Q::of(name: 'x')->not()). */
final class Q
{
    /** @param list<mixed> $children */
    private function __construct(
        private readonly string $connector,
        private readonly array $children,
        private readonly bool $negated = false,
    ) {
    }

    /** All of these hold: conditions, expressions that are true or false, and lookups by name. */
    public static function of(mixed ...$conditions): self
    {
        $children = [];
        foreach ($conditions as $path => $condition) {
            $item = Wire::encode($condition);
            $children[] = is_string($path) ? [$path, $item] : $item;
        }
        return new self('and', $children);
    }

    public function and(self $other): self
    {
        return new self('and', [$this->json(), $other->json()]);
    }

    public function or(self $other): self
    {
        return new self('or', [$this->json(), $other->json()]);
    }

    public function xor(self $other): self
    {
        return new self('xor', [$this->json(), $other->json()]);
    }

    public function not(): self
    {
        return new self($this->connector, $this->children, !$this->negated);
    }

    public function json(): \stdClass
    {
        return (object) ['$q' => [$this->connector, $this->children, $this->negated]];
    }
}

/** Values as JSON and back, and the seal. */
final class Wire
{
    private const FLAGS = JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES
        | JSON_UNESCAPED_LINE_TERMINATORS | JSON_PRESERVE_ZERO_FRACTION | JSON_THROW_ON_ERROR;

    /** The largest integer that all readers of JSON have. */
    private const LARGEST = 9007199254740992;

    /** Return $value as what json_encode writes; a list is a list, another array a dictionary. */
    public static function encode(mixed $value): mixed
    {
        if (is_int($value) && ($value > self::LARGEST || $value < -self::LARGEST)) {
            return (object) ['$int' => (string) $value];
        }
        if (is_float($value) && !is_finite($value)) {
            return (object) ['$float' => is_nan($value) ? 'nan' : ($value > 0 ? 'inf' : '-inf')];
        }
        if (is_array($value)) {
            if (array_is_list($value)) {
                return array_map(self::encode(...), $value);
            }
            return self::encode(Tagged::dict($value));
        }
        return match (true) {
            $value instanceof Tagged => (object) [$value->tag => $value->content],
            $value instanceof Q => $value->json(),
            $value instanceof QuerySet => (object) ['$delayed' => $value->tree()],
            $value instanceof \DateTimeInterface =>
                (object) ['$dt' => $value->format('Y-m-d\TH:i:s.uP')],
            is_object($value) => throw new \InvalidArgumentException(
                get_class($value) . ' cannot be sent'
            ),
            default => $value,
        };
    }

    /** Return what $item, of json_decode without arrays, stands for: nothing is lost. */
    public static function decode(mixed $item): mixed
    {
        if (is_array($item)) {
            return array_map(self::decode(...), $item);
        }
        if (!$item instanceof \stdClass) {
            return $item;
        }
        $parts = get_object_vars($item);
        $tag = (string) array_key_first($parts);
        if (count($parts) !== 1 || !str_starts_with($tag, '$')) {
            throw new RemoteError('Malformed', 'an object has one name, its tag');
        }
        $content = $parts[$tag];
        if ($tag === '$int' && is_string($content) && (string) (int) $content === $content) {
            return (int) $content;
        }
        if ($tag === '$float') {
            return match ($content) {
                'nan' => NAN,
                'inf' => INF,
                '-inf' => -INF,
                default => throw new RemoteError('Malformed', '$float takes nan, inf and -inf'),
            };
        }
        return new Tagged($tag, $content);
    }

    /**
     * Return a decoded value as PHP has it: dictionaries and rows as arrays, times with a zone as
     * DateTimeImmutable, bytes as strings. Decimals, dates and durations are strings.
     */
    public static function plain(mixed $value): mixed
    {
        if (is_array($value)) {
            return array_map(self::plain(...), $value);
        }
        if (!$value instanceof Tagged) {
            return $value;
        }
        $content = $value->content;
        switch ($value->tag) {
            case '$dt':
                $zoned = preg_match('/[+-]\d\d:\d\d(:\d\d)?$/D', $content) === 1;
                return $zoned ? new \DateTimeImmutable($content) : $content;
            case '$bytes':
                return base64_decode($content, true);
            case '$tuple':
            case '$set':
                return array_map(fn ($each) => self::plain(self::decode($each)), $content);
            case '$dict':
                $found = [];
                foreach ($content as [$key, $item]) {
                    $name = self::plain(self::decode($key));
                    $name = is_int($name) || is_string($name) ? $name : self::text($key);
                    $found[$name] = self::plain(self::decode($item));
                }
                return $found;
            case '$json':
                return json_decode(self::text($content), true, flags: JSON_BIGINT_AS_STRING);
            case '$rows':
                $found = self::rows($content);
                return $content->kind === 'instance' ? $found[0] : $found;
            default:
                return $content;
        }
    }

    /** @return list<mixed> */
    private static function rows(\stdClass $rows): array
    {
        return array_map(function (array $row) use ($rows) {
            return match ($rows->kind) {
                'flat' => self::plain(self::decode($row[0])),
                'tuple' => array_map(fn ($each) => self::plain(self::decode($each)), $row),
                default => self::row($rows, $row),
            };
        }, $rows->rows);
    }

    /**
     * @param list<mixed> $row
     * @return array<string, mixed>
     */
    private static function row(\stdClass $shape, array $row): array
    {
        $found = [];
        foreach ($shape->fields as $at => $field) {
            $found[$field] = self::plain(self::decode($row[$at]));
        }
        $at = count($shape->fields);
        foreach ($shape->related as $below) {
            $found[$below->name] = $row[$at] === null ? null : self::row($below, $row[$at]);
            $at++;
        }
        foreach ($shape->prefetched as $below) {
            $each = array_map(fn ($item) => self::row($below, $item), $row[$at]);
            $found[$below->name] = $below->single ? ($each[0] ?? null) : $each;
            $at++;
        }
        return $found;
    }

    /** Return JSON as it travels. */
    public static function text(mixed $item): string
    {
        return json_encode($item, self::FLAGS, 256);
    }

    /** Return what the JSON $text holds, objects as objects. */
    public static function parsed(string $text): mixed
    {
        try {
            return json_decode($text, false, 256, JSON_THROW_ON_ERROR | JSON_BIGINT_AS_STRING);
        } catch (\JsonException $error) {
            throw new RemoteError('Malformed', $error->getMessage());
        }
    }

    /** Return $body with its seal. */
    public static function seal(string $body, string $keyId, string $secret): string
    {
        return "v1.$keyId." . hash_hmac('sha256', "v1.$keyId.$body", $secret) . ".$body";
    }

    /**
     * Return the results of an answer; throw RemoteError for that of the whole message.
     *
     * @param array<string, string> $secrets by the id of their key
     * @return list<mixed> a decoded value or a RemoteError for each tree
     */
    public static function open(string $text, array $secrets, string $id): array
    {
        if (!preg_match('/^v1\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{64}|-)\./D', $text, $head)) {
            throw preg_match('/^v[0-9]+\./', $text) && !str_starts_with($text, 'v1.')
                ? new RemoteError('UnknownVersion', 'this is version 1')
                : new RemoteError('Malformed', 'a text has the form v1.<key id>.<seal>.<body>');
        }
        [$all, $keyId, $mac] = $head;
        $body = substr($text, strlen($all));
        $sealed = $all !== 'v1.-.-.';
        if ($sealed && ($keyId === '-' || $mac === '-')) {
            throw new RemoteError('Malformed', 'a key without a seal, or a seal without a key');
        }
        if ($sealed) {
            $secret = $secrets[$keyId] ?? throw new RemoteError('UnknownKey', $keyId);
            if (!hash_equals(hash_hmac('sha256', "v1.$keyId.$body", $secret), $mac)) {
                throw new RemoteError('BadSignature', "the seal is not that of key $keyId");
            }
        }
        $answer = self::parsed($body);
        if (!$answer instanceof \stdClass || ($answer->v ?? null) !== 1) {
            throw new RemoteError('UnknownVersion', 'this is version 1');
        }
        $given = $answer->id ?? null;
        if (property_exists($answer, 'error')) {
            if ($given !== null && $given !== $id) {
                throw new RemoteError('Malformed', 'the answer to another message');
            }
            throw self::error($answer->error, $sealed);
        }
        if (!$sealed || $given !== $id || !is_array($answer->results ?? null)) {
            throw new RemoteError('Malformed', 'no results, or those of another message');
        }
        return array_map(self::result(...), $answer->results);
    }

    private static function result(mixed $item): mixed
    {
        $parts = $item instanceof \stdClass ? get_object_vars($item) : [];
        if (array_keys($parts) === ['ok']) {
            return self::decode($parts['ok']);
        }
        if (array_keys($parts) === ['error']) {
            return self::error($parts['error'], true);
        }
        throw new RemoteError('Malformed', 'a result has one name, ok or error');
    }

    private static function error(mixed $item, bool $sealed): RemoteError
    {
        if (!is_string($item->code ?? null) || !is_string($item->message ?? null)) {
            throw new RemoteError('Malformed', 'an error is a code, a text and an object');
        }
        $details = array_map(
            fn ($each) => self::plain(self::decode($each)),
            get_object_vars($item->details ?? new \stdClass()),
        );
        return new RemoteError($item->code, $item->message, $details, $sealed);
    }
}

/**
 * Rows of a model. Django's methods of querysets, by their names, return a new one; Django's ends,
 * `get`, `first`, `count`, `create` and so on, ask the service and return the result.
 */
final class QuerySet
{
    public const OPERATIONS = [
        'all', 'none', 'annotate', 'alias', 'order_by', 'reverse', 'distinct', 'slice', 'values',
        'values_list', 'dates', 'datetimes', 'only', 'defer', 'select_related', 'prefetch_related',
        'select_for_update', 'union', 'intersection', 'difference',
    ];

    /** @param list<mixed> $ops */
    public function __construct(
        private readonly Client $client,
        private readonly string $model,
        private readonly array $ops = [],
    ) {
    }

    /** Return what this is as a subquery. */
    public function tree(): \stdClass
    {
        return $this->ended('rows', []);
    }

    public function filter(mixed ...$conditions): self
    {
        return $this->with('filter', [Q::of(...$conditions)]);
    }

    public function exclude(mixed ...$conditions): self
    {
        return $this->with('exclude', [Q::of(...$conditions)]);
    }

    /** @param array<mixed> $arguments */
    public function __call(string $name, array $arguments): mixed
    {
        if (in_array($name, self::OPERATIONS, true)) {
            return $this->with($name, $arguments);
        }
        if ($name === 'get' && $arguments) {
            return $this->filter(...$arguments)->get();
        }
        return $this->client->gather($this->request($name, ...$arguments))[0];
    }

    /**
     * Return what Client::gather sends: an end of this queryset, 'rows' or 'count'. No field has the
     * parameter's name, which begins with an underscore.
     */
    public function request(string $_end, mixed ...$arguments): Request
    {
        return new Request($this->ended($_end, $arguments));
    }

    /** @param array<mixed> $arguments */
    private function with(string $name, array $arguments): self
    {
        return new self($this->client, $this->model, [...$this->ops, self::op($name, $arguments)]);
    }

    /** @param array<mixed> $arguments */
    private function ended(string $name, array $arguments): \stdClass
    {
        return (object) [
            'model' => $this->model,
            'ops' => $this->ops,
            'end' => self::op($name, $arguments),
            'fields' => null,
        ];
    }

    /**
     * @param array<mixed> $arguments those with a name are named ones
     * @return list<mixed>
     */
    private static function op(string $name, array $arguments): array
    {
        $args = [];
        $named = new \stdClass();
        foreach ($arguments as $key => $argument) {
            if (is_string($key)) {
                $named->$key = Wire::encode($argument);
            } else {
                $args[] = Wire::encode($argument);
            }
        }
        return [$name, $args, $named];
    }
}

/** One tree of a message. */
final class Request
{
    public function __construct(public readonly \stdClass $tree)
    {
    }

    /** Return the result of $value, what the service answered: rows as rows, one row as itself. */
    public function result(mixed $value): mixed
    {
        $plain = Wire::plain($value);
        if (!is_array($plain)) {
            return $plain;
        }
        return match ($this->tree->end[0]) {
            'get', 'first', 'last', 'latest', 'earliest', 'create', 'insert', 'save' =>
                $plain[0] ?? null,
            'get_or_create', 'update_or_create' => [$plain[0][0], $plain[1]],
            'in_bulk' => array_map(fn ($rows) => $rows[0], $plain),
            default => $plain,
        };
    }
}

/** A service, by the URL of its view and a key that both know. */
final class Client
{
    private const WRITES = [
        'create', 'bulk_create', 'bulk_update', 'update', 'delete', 'get_or_create',
        'update_or_create', 'insert', 'save', 'related_add', 'related_remove', 'related_set',
        'related_clear', 'call',
    ];

    /**
     * $timeout is in seconds. $options are those of PHP's stream context: ['ssl' => [...]].
     *
     * @param array<string, array<string, mixed>> $options
     */
    public function __construct(
        private readonly string $url,
        private readonly string $keyId,
        #[\SensitiveParameter] private readonly string $secret,
        private readonly ?string $principal = null,
        private readonly float $timeout = 10.0,
        private readonly ?string $name = null,
        private readonly array $options = [],
    ) {
        if (!preg_match('/^[A-Za-z0-9_-]{1,64}$/D', $keyId) || strlen($secret) < 32) {
            throw new \InvalidArgumentException("a key's id is a word, its secret 32 bytes or more");
        }
    }

    /** Return all rows of the model "app.Model". */
    public function model(string $name): QuerySet
    {
        return new QuerySet($this, $name);
    }

    /**
     * Send all requests in one message; return the result of each. The first error is thrown.
     *
     * @return list<mixed>
     */
    public function gather(Request ...$requests): array
    {
        return $this->send(array_values($requests));
    }

    /**
     * As gather. With $atomic all are run in one transaction. The same $idempotency names the same
     * writes when they are sent again.
     *
     * @param list<Request> $requests
     * @return list<mixed>
     */
    public function send(array $requests, bool $atomic = false, ?string $idempotency = null): array
    {
        $id = bin2hex(random_bytes(16));
        $nonce = bin2hex(random_bytes(16));
        $body = $this->body($id, $nonce, microtime(true), $requests, $atomic, $idempotency);
        $text = $this->post(Wire::seal($body, $this->keyId, $this->secret));
        $results = Wire::open($text, [$this->keyId => $this->secret], $id);
        if (count($results) !== count($requests)) {
            throw new RemoteError('Malformed', 'not as many results as requests');
        }
        $errors = array_filter($results, fn ($result) => $result instanceof RemoteError);
        // Of requests that go together the others were not run because of one, which says why.
        $causes = array_filter($errors, fn ($error) => $error->errorCode !== 'NotRun');
        foreach ($causes ?: $errors as $error) {
            throw $error;
        }
        $found = [];
        foreach ($results as $at => $result) {
            $found[] = $requests[$at]->result($result);
        }
        return $found;
    }

    /**
     * Return the body of a message.
     *
     * @param list<Request> $requests
     */
    public function body(
        string $id,
        string $nonce,
        float $now,
        array $requests,
        bool $atomic,
        ?string $idempotency,
    ): string {
        $trees = array_map(fn (Request $each) => $each->tree, $requests);
        $writes = array_filter($trees, fn ($tree) => in_array($tree->end[0], self::WRITES, true));
        return Wire::text([
            'v' => 1,
            'id' => $id,
            'client' => [
                'host' => gethostname() ?: 'php',
                'process' => getmypid() ?: 0,
                'name' => $this->name,
            ],
            'time' => (int) ($now * 1000),
            'deadline' => (int) (($now + $this->timeout) * 1000),
            'principal' => $this->principal,
            'nonce' => $nonce,
            'idempotency' => $idempotency ?? ($writes ? bin2hex(random_bytes(16)) : null),
            'atomic' => $atomic,
            'trees' => $trees,
        ]);
    }

    private function post(string $text): string
    {
        $http = [
            'method' => 'POST',
            'header' => "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n",
            'content' => $text,
            'timeout' => $this->timeout,
            'ignore_errors' => true,
            'follow_location' => 0,
        ];
        $options = $this->options;
        $options['http'] = [...$http, ...($options['http'] ?? [])];
        $why = 'no answer';
        // An application's own handler may make exceptions of warnings.
        set_error_handler(function (int $level, string $message) use (&$why): bool {
            $why = $message;
            return true;
        });
        try {
            $answer = file_get_contents($this->url, false, stream_context_create($options));
        } finally {
            restore_error_handler();
        }
        $headers = function_exists('http_get_last_response_headers')
            ? http_get_last_response_headers() ?? []
            : $http_response_header ?? [];
        $length = preg_grep('/^Content-Length: *[0-9]+$/i', $headers);
        if ($answer !== false && $length && strlen($answer) < (int) substr(end($length), 15)) {
            throw new RemoteError('Unavailable', "$this->url: its answer was cut off");
        }
        if ($answer === false || !preg_match('/^v[0-9]+\./', $answer)) {
            throw new RemoteError('Unavailable', "$this->url: " . ($headers[0] ?? $why));
        }
        return $answer;
    }
}
