import static java.util.concurrent.TimeUnit.SECONDS;

import io.grpc.CallOptions;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** The test client for gRPC in Java. What it does is said in the README of the folder above. */
public final class Client {
  /** Sends strings as they are. */
  private static final class Text implements MethodDescriptor.Marshaller<String> {
    @Override
    public InputStream stream(String value) {
      return new ByteArrayInputStream(value.getBytes());
    }

    @Override
    public String parse(InputStream stream) {
      try {
        return new String(stream.readAllBytes());
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }

  private static final MethodDescriptor<String, String> NAME =
      MethodDescriptor.newBuilder(new Text(), new Text())
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("fairlead.test.Backend/Name")
          .build();

  public static void main(String[] args) throws IOException {
    Map<String, ManagedChannel> channels = new TreeMap<>();
    BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
    for (String order = orders.readLine(); order != null; order = orders.readLine()) {
      String[] words = order.split(" ");
      ManagedChannel channel = channels.computeIfAbsent(words[1], Client::open);
      System.out.println(call(channel, Integer.parseInt(words[0])));
    }
    channels.values().forEach(ManagedChannel::shutdownNow);
  }

  private static ManagedChannel open(String target) {
    return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
  }

  /** Makes calls and counts what comes of them. */
  private static String call(ManagedChannel channel, int calls) {
    Map<String, Integer> answers = new TreeMap<>();
    Map<String, Integer> errors = new TreeMap<>();
    for (int i = 0; i < calls; i++) {
      try {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(10, SECONDS);
        answers.merge(ClientCalls.blockingUnaryCall(channel, NAME, options, ""), 1, Integer::sum);
      } catch (StatusRuntimeException e) {
        String text = e.getStatus().getCode() + ": " + e.getStatus().getDescription();
        errors.merge(text, 1, Integer::sum);
      }
    }
    return "{\"answers\":" + json(answers) + ",\"errors\":" + json(errors) + "}";
  }

  private static String json(Map<String, Integer> counts) {
    return counts.entrySet().stream()
        .map(e -> quote(e.getKey()) + ":" + e.getValue())
        .collect(Collectors.joining(",", "{", "}"));
  }

  private static String quote(String text) {
    StringBuilder quoted = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\' || c < ' ') {
        quoted.append(String.format("\\u%04x", (int) c));
      } else {
        quoted.append(c);
      }
    }
    return quoted.append('"').toString();
  }
}
